"""Settings of the processes: one frozen dataclass per service, each field a flag of that service's command.

Flags have vLLM's names where vLLM has them. Values are checked when a configuration is made; a bad one raises
`ConfigError` naming the flag, the value and the rule.
"""

from quire.config.scheduler import SchedulerConfig
from quire.config.tokenizer import TokenizerConfig
from quire.config.worker import WorkerConfig

__all__ = ["SchedulerConfig", "TokenizerConfig", "WorkerConfig"]
