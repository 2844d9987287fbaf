"""What is counted, in the names of the field's servers, each server with a registry of its own."""

import json
import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ertacache.serving.job import Job, JobQueue
from ertacache.serving.ladder import Ladder

logger = logging.getLogger(__name__)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Meters:
    """Counters of one server; `text` is the page that Prometheus reads."""

    def __init__(self, queue: JobQueue, ladder: Ladder) -> None:
        self._registry = registry = CollectorRegistry()
        _gauge("num_queue_reqs", "Pictures and clips that wait.", lambda: len(queue.waiting), registry)
        _gauge("num_running_reqs", "Pictures and clips under way.", lambda: len(queue.running), registry)
        self._requests = Counter(
            _name("requests"), "Pictures and clips by how they ended.", ["status"], registry=registry
        )
        self._latency = Histogram(
            _name("request_latency_seconds"), "From the request to the file.", buckets=_SECONDS, registry=registry
        )
        self._waited = Histogram(
            _name("queue_time_seconds"), "From the request to the first step.", buckets=_SECONDS, registry=registry
        )
        self._batch = Histogram(
            _name("generation_batch_size"), "Of one call.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self._calls = Counter(
            _name("denoiser_calls"), "Computed, or predicted by a profile.", ["kind", "profile"], registry=registry
        )
        loss = Gauge("ertacache:profile_judged_psnr_db", "On judged prompts.", ["profile"], registry=registry)
        share = Gauge("ertacache:profile_computed_share", "Of the steps.", ["profile"], registry=registry)
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
        line = {
            "event": "job", "id": job.id, "state": job.state, "profile": job.rung.name, "computed": job.computed,
            "predicted": job.predicted, "queued_seconds": round(job.waited, 4), "seconds": round(job.seconds, 4),
            "lora": dict(job.order.lora), "uncached_because": job.reason, "error": job.error,
        }  # fmt: skip
        logger.info(json.dumps(line))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


def _name(name: str) -> str:
    return f"ertacache:diffusion_{name}"


def _gauge(name: str, words: str, value: Callable[[], float], registry: CollectorRegistry) -> None:
    Gauge(_name(name), words, registry=registry).set_function(value)
