"""Seeing inside: traces and logs, the same way in every process. Nothing leaves a process unless configured."""
