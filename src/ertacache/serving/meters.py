"""What is counted, in the names of the field's servers, each server with a registry of its own."""

import json
import logging
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ertacache.serving.job import Job, JobQueue
from ertacache.serving.ladder import Ladder

logger = logging.getLogger(__name__)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Meters:
    """Counters of one server; `text` is the page that Prometheus reads."""

    def __init__(self, queue: JobQueue, ladder: Ladder) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry, "namespace": "ertacache:diffusion"}
        Gauge("num_queue_reqs", "Pictures and clips that wait.", **own).set_function(lambda: len(queue.waiting))
        Gauge("num_running_reqs", "Pictures and clips under way.", **own).set_function(lambda: len(queue.running))
        self._requests = Counter("requests", "Pictures and clips by how they ended.", ["status"], **own)
        self._latency = Histogram("request_latency_seconds", "From the request to the file.", buckets=_SECONDS, **own)
        self._waited = Histogram("queue_time_seconds", "From the request to the first step.", buckets=_SECONDS, **own)
        self._batch = Histogram("generation_batch_size", "Of one call.", buckets=(1, 2, 4, 8, 16, 32), **own)
        self._calls = Counter("denoiser_calls", "Computed, or predicted by a profile.", ["kind", "profile"], **own)
        own["namespace"] = "ertacache:profile"
        loss = Gauge("judged_psnr_db", "On judged prompts.", ["profile"], **own)
        share = Gauge("computed_share", "Of the steps.", ["profile"], **own)
        for rung in ladder.rungs:
            share.labels(rung.name).set(rung.share)
            if rung.loss is not None:
                loss.labels(rung.name).set(rung.loss)

    def ran(self, jobs: list[Job]) -> None:
        """One call of the pipeline."""
        self._batch.observe(len(jobs))
        self._calls.labels("computed", jobs[0].rung.name).inc(jobs[0].computed)
        self._calls.labels("predicted", jobs[0].rung.name).inc(jobs[0].predicted)

    def ended(self, job: Job) -> None:
        """One picture or clip, however it ended: counted, and a line in the log."""
        self._requests.labels(job.state).inc()
        if job.state == "completed" and job.ended is not None:
            self._latency.observe(job.ended - job.created)
            self._waited.observe(job.waited)
        logger.info(json.dumps({"event": "job", "id": job.id, "state": job.state, "error": job.error, **job.facts()}))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
