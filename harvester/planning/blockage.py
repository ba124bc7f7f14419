"""Why an attempt can be neither ordered nor planned for: one sentence each. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from harvester.planning.limits import Limits, Offer
from harvester.planning.shapes import misfit
from harvester.planning.sizing import Demand, too_empty
from payload_runner.protocol import NodeShape, Shape


def misfit_sentence(shape: Shape, node: NodeShape, site: str) -> str | None:
    """Why no node of the site can hold the shape; None when one can."""
    lack = misfit(shape, node)
    return None if lack is None else f"it {lack} at site {site}"


def blockage(kind: Demand, site: str, bins: Sequence[Offer], limits: Limits) -> str:
    """Why nothing can be submitted that would run attempts of this kind."""
    if not bins:
        return f"no queue of site {site} leaves time beside start and drain of an allocation"
    wide = [offer for offer in bins if kind.shape.nodes_min <= offer.nodes_max]
    if not wide:
        most = max(offer.nodes_max for offer in bins)
        return f"it needs {kind.shape.nodes_min} nodes; site {site} gives at most {most}"
    lasting = [offer for offer in wide if kind.least_s <= offer.usable_max_s]
    if not lasting:
        return _too_long(kind, max(offer.usable_max_s for offer in wide))
    refusals = [limits.refusal(offer) for offer in lasting]
    if refusals[0] is not None and None not in refusals:
        return refusals[0]
    if all(too_empty((kind,), offer) for offer in lasting):
        return _too_few(kind, min(offer.nodes_min for offer in lasting))
    return "the node-hours left do not pay for an allocation that lasts long enough for it"


def _too_long(kind: Demand, most_s: float) -> str:
    return (
        f"it needs about {kind.least_s:.0f} s in one go; an allocation of its size has at "
        f"most {most_s:.0f} s for payloads, and it saves no checkpoints"
    )


def _too_few(kind: Demand, nodes: int) -> str:
    return (
        f"the queues that last long enough start at {nodes} nodes, which {kind.count} attempts "
        "like this would leave almost idle; checkpoints or more points would help"
    )
