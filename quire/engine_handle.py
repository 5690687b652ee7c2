"""What `LLM` and `AsyncLLMEngine` have in common: a client, and the stack behind it if it is their own."""

import weakref

from quire.engine_args import EngineArgs
from quire.engine_client import EngineClient
from quire.launcher.hosted_stack import HostedStack
from quire.sampling_params import SamplingParams

_LARGEST_WINDOW = 1024


class EngineHandle:
    """Starts the stack that `args` ask for, or attaches to the one that they name.

    The stack ends with `stop`, with the handle, or with the process, whichever comes first and however the process ends.
    """

    def __init__(self, args: EngineArgs) -> None:
        self.window = _LARGEST_WINDOW
        """Most requests to have under way: enough to keep an engine busy, and fewer than it takes."""
        self.scheduler_address = ""
        """Of a stack of its own."""
        options = args.stack_options
        if options is None:
            assert args.address is not None, "without an address there are options for a stack"
            self.address = args.address
            self._finalizer = None
        else:
            stack = HostedStack(options)
            stack.start()
            self._finalizer = weakref.finalize(self, stack.stop)
            self.address = stack.address
            self.scheduler_address = stack.scheduler_address
            self.window = min(_LARGEST_WINDOW, options.max_num_requests)
        self.client = EngineClient(args.connection(self.address))

    def stop(self) -> None:
        """Ends a stack of its own. A second call does nothing."""
        if self._finalizer is not None:
            self._finalizer()


def default_sampling_params() -> SamplingParams:
    """Those of the served model, where it has any."""
    return SamplingParams(temperature=None, top_p=None, top_k=None, min_p=None, repetition_penalty=None)
