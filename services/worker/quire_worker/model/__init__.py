"""The decoder of the Llama family, from a Hugging Face directory to logits.

One description (`config`) covers Llama, Mistral, Qwen2 and Qwen3; what differs between them is data. Knows tensors and
weights; no slot, no plan, no socket.
"""
