"""The soak of the server at a small size; `benchmarks/serve_soak.py` runs 500 requests of 8 clients."""

import served_flux
from benchmark_scripts import load
from ertacache.serving.order import Limits
from served import running


def test_no_picture_is_another_and_no_job_is_lost():
    script, service = load("serve_soak"), served_flux.service(limits=Limits(queue=3))
    expected = script.alone(service.pipes[0], service.ladder)
    with running(service) as url:
        found = script.soak(url, expected, requests=24, clients=4, seed=0)
    seen, ended = found["seen"], found["ended"]
    assert found["faults"] == []
    assert seen.get("not the one made alone", 0) == 0
    assert seen["pictures"] > 0 and seen["bad input"] > 0
    made = seen["pictures"] + seen.get("streams", 0)
    completed = ended['requests_total{status="completed"}']
    assert made <= completed <= made + seen.get("gone", 0)  # one that went away may have been done
    assert sum(ended.values()) == made + seen.get("gone", 0)
    assert found["left"] == {"num_queue_reqs": 0, "num_running_reqs": 0}
