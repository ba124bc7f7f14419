"""What an agent has ahead of need: payloads that start in the slot of the next one that ends."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from payload_runner.protocol import Order, PayloadSpec, Shape

HAND_BACK_AT_ONCE = 500  # attempts in one message


class AgentQueue:
    """Orders with their payloads, first come, first served."""

    def __init__(self) -> None:
        self._waiting: Dict[str, Tuple[Order, PayloadSpec]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, order: Order, spec: PayloadSpec) -> None:
        """The last of the queue."""
        self._waiting[order.attempt] = (order, spec)

    def take(self, shape: Shape) -> Optional[Tuple[Order, PayloadSpec]]:
        """The first of this shape: it fits into the slot that another one had."""
        for attempt, (order, spec) in self._waiting.items():
            if spec.shape == shape:
                del self._waiting[attempt]
                return order, spec
        return None

    def remove(self, attempt: str) -> bool:
        """Forget one; False if it is not queued."""
        return self._waiting.pop(attempt, None) is not None

    def empty(self) -> List[str]:
        """Forget all; their attempts, in order."""
        attempts = list(self._waiting)
        self._waiting.clear()
        return attempts
