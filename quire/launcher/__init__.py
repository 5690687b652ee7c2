"""Starting the whole stack on this machine, each service in a child process of its own.

Shared by `quire serve`, `LLM` and `AsyncLLMEngine`. Imports no service: a service is a module to run and its flags.
"""
