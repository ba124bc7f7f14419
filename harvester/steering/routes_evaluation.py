"""``/leases``, ``/results`` and ``/reports``: what harvesters call."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from harvester.central.port import LeaseReply, LeaseRequest
from harvester.steering.bodies import LeaseBody, RenewBody, ReportsBody, ResultsBody
from harvester.steering.leases import LEASE_S, lease_points, renew_leases
from harvester.steering.reports import take_reports
from harvester.steering.results import deliver
from harvester.steering.service import Service, principal_of, service_of
from harvester.steering.tokens import Principal, Role
from harvester.steering.web import StrictRoute, json_response
from payload_runner.protocol import to_fields

ROUTER = APIRouter(tags=["evaluation"], route_class=StrictRoute)
WAIT_FOR_POINTS_S = 1.0  # what an empty-handed harvester is kept while the sampler thinks


@ROUTER.post("/leases")
def lease(request: Request, body: LeaseBody) -> Response:
    """Points to evaluate; the same key gets the same points."""
    principal = principal_of(request)
    principal.require(Role.EVALUATE)
    service = service_of(request)
    wanted = body.to_request()
    reply = _lease(service, principal, wanted)
    if not reply.points and reply.waiting and wanted.points:
        service.asker.wait_for_points(WAIT_FOR_POINTS_S)
        reply = _lease(service, principal, wanted)
    service.asker.wake()
    return json_response(
        {
            # Written out rather than through to_fields, which leaves out what is at its default.
            "points": [
                {
                    "lease": point.lease,
                    "task": point.task,
                    "point": point.point,
                    "parameters": point.parameters,
                    "payload_id": point.payload_id,
                    "segment": point.segment,
                    "priority": point.priority,
                    "expires_s": point.expires_s,
                    "attempts_before": point.attempts_before,
                }
                for point in reply.points
            ],
            "payloads": to_fields(reply.payloads),
            "more": reply.more,
            "waiting": reply.waiting,
        }
    )


@ROUTER.post("/leases/renew")
def renew(request: Request, body: RenewBody) -> Response:
    """Prolong leases; says which are gone and which should stop."""
    principal = principal_of(request)
    principal.require(Role.EVALUATE)
    service = service_of(request)
    with service.database.write() as connection:
        standing = renew_leases(connection, principal, body.leases, service.clock.now())
    return json_response(
        {"gone": list(standing.gone), "stop": dict(standing.stop), "expires_s": LEASE_S}
    )


@ROUTER.post("/results")
def results(request: Request, body: ResultsBody) -> Response:
    """Outcomes of attempts, one receipt each; all of them are durable with the answer."""
    principal = principal_of(request)
    principal.require(Role.EVALUATE)
    service = service_of(request)
    told = [item.to_result() for item in body.results]
    with service.database.write() as connection:
        receipts = deliver(connection, principal, body.harvester, told, service.clock.now())
    service.asker.wake()
    return json_response(
        {
            "receipts": [
                {"attempt": item.attempt, "verdict": item.verdict, "reason": item.reason}
                for item in receipts
            ]
        }
    )


@ROUTER.post("/reports")
def reports(request: Request, body: ReportsBody) -> Response:
    """Metrics of running attempts; the answer names leases to stop."""
    principal = principal_of(request)
    principal.require(Role.EVALUATE)
    service = service_of(request)
    told = [item.to_report() for item in body.reports]
    with service.database.write() as connection:
        stop = take_reports(connection, principal, told)
    return json_response({"stop": stop})


def _lease(service: Service, principal: Principal, wanted: LeaseRequest) -> LeaseReply:
    with service.database.write() as connection:
        return lease_points(connection, principal, wanted, service.clock.now())
