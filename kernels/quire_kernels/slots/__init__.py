"""The persistent batch on the device: what a slot holds, how a step reads it, and how it moves on."""
