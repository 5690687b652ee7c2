"""The pure core of the scheduler; see `scheduler`.

Below this package: no clock, socket, task, tensor library or telemetry. The import rules of the project enforce it.
"""

from quire_scheduler.core.answer import AnswerError, BrokenAnswer, StaleAnswer
from quire_scheduler.core.beam_search import BeamParams
from quire_scheduler.core.event import Milestone, MilestoneKind, OwnerEvents, RequestFailure
from quire_scheduler.core.group import GroupCapacity
from quire_scheduler.core.request import FinishReason, OwnerId, Request, Sampling, TokenIds, token_ids_of
from quire_scheduler.core.scheduler import CoreLimits, RequestRefused, Scheduler
from quire_scheduler.core.stats import CoreStats

__all__ = [
    "AnswerError",
    "BeamParams",
    "BrokenAnswer",
    "CoreLimits",
    "CoreStats",
    "FinishReason",
    "GroupCapacity",
    "Milestone",
    "MilestoneKind",
    "OwnerEvents",
    "OwnerId",
    "Request",
    "RequestFailure",
    "RequestRefused",
    "Sampling",
    "Scheduler",
    "StaleAnswer",
    "TokenIds",
    "token_ids_of",
]
