"""Usage events for tests."""

from __future__ import annotations

from inference.events import UsageEvent
from naru.identity import Principal
from naru.usage import Accuracy, Evidence, Outcome, Usage


def event_of(number: int, evidence: Evidence = Evidence.FINAL) -> UsageEvent:
    """The event of a request; the same number makes the same event."""
    final = evidence is Evidence.FINAL
    return UsageEvent(
        event_id=f"00000000-0000-7000-8000-{number:012d}",
        attempt=0,
        evidence=evidence,
        accuracy=Accuracy.EXACT if final else Accuracy.ESTIMATED,
        principal=Principal(workspace_id="ws-1", key_id="abcdefghijkl"),
        requested_model="small",
        served_model="small",
        endpoint="/v1/completions",
        usage=Usage(prompt_tokens=7, completion_tokens=number if final else 0),
        outcome=Outcome.COMPLETED if final else Outcome.FAILED,
        accept_time=1_800_000_000.25,
        end_time=1_800_000_001.5 if final else None,
        request_id=f"req_{number}",
        replica="replica-1",
        epoch="epoch-1",
    )
