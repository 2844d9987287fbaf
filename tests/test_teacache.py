"""TeaCache as a compared method, against a second implementation that is one plain forward of FLUX."""

import numpy as np
import pytest
import torch

import small_open_sora
from ertacache.baselines.teacache import COEFFICIENTS, TeaCache
from ertacache.baselines.teacache_signal import SignalController, distance
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.errors import CacheConflict, CalibrationError, InvalidArgument, UnsupportedPipeline
from ertacache.evaluation.execute import execute
from ertacache.runtime.hooks import attached, attachment_of
from method_contract import FIRST, PIPELINES, check_contract
from pipelines import CALL, CFG_CALL, VIDEO_CALL, cogvideox, flux, wan

BUILDS = {
    "FluxTransformer2DModel": (flux, CALL),
    "WanTransformer3DModel": (wan, VIDEO_CALL),
    "CogVideoXTransformer3DModel": (cogvideox, VIDEO_CALL),
    "STDiT3Transformer3DModel": (small_open_sora.open_sora, small_open_sora.CALL),
}
#: p(d) = 1 and p(d) = d.
ONE, IDENTITY = (0.0, 0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0, 0.0)


class ByHand:
    """TeaCache in place of the forward of a FLUX transformer that is called by `branches` branches in turn."""

    def __init__(self, transformer, method, branches, T=10):
        self.parts, self.method, self.branches, self.T = transformer, method, branches, T
        self.calls, self.state, self.ran = 0, {}, []

    def __call__(
        self, hidden_states, encoder_hidden_states, pooled_projections, timestep, img_ids, txt_ids, guidance, **_
    ):
        step, branch = divmod(self.calls, self.branches)
        self.calls += 1
        x = entry = self.parts.x_embedder(hidden_states)
        scales = [timestep * 1000] if guidance is None else [timestep * 1000, guidance * 1000]
        temb = self.parts.time_text_embed(*scales, pooled_projections)
        signal = self.parts.transformer_blocks[0].norm1(x, emb=temb)[0]
        previous, total, residual = self.state.get(branch, (None, 0.0, None))
        if 0 < step < self.T - 1:
            change = ((signal - previous).abs().mean() / previous.abs().mean()).item()
            total += np.poly1d(self.method.coefficients)(change)
        compute = step in (0, self.T - 1) or total >= self.method.threshold
        if compute:
            text, ids = self.parts.context_embedder(encoder_hidden_states), torch.cat([txt_ids, img_ids])
            for block in [*self.parts.transformer_blocks, *self.parts.single_transformer_blocks]:
                text, x = block(
                    hidden_states=x,
                    encoder_hidden_states=text,
                    temb=temb,
                    image_rotary_emb=self.parts.pos_embed(ids),
                )
            total, residual = 0.0, x - entry
        else:
            x = entry + residual
        self.state[branch] = signal, total, residual
        self.ran.append(compute)
        return (self.parts.proj_out(self.parts.norm_out(x, temb)),)


@pytest.mark.parametrize(
    ("branches", "method"),
    [
        (1, TeaCache(0.3, IDENTITY)),
        (1, TeaCache(0.6, COEFFICIENTS["FLUX.1-dev"])),
        (2, TeaCache(0.1825, IDENTITY)),  # step 1 moves by .1820 in one branch, by .1831 in the other
    ],
    ids=["identity", "published", "two-branches"],
)
def test_decisions_and_latents_are_those_of_the_method_written_by_hand(branches, method):
    build, call = (flux, CALL) if branches == 1 else (lambda: flux(False), CFG_CALL)
    latents, executed = execute(build(), method, FIRST, call, decode=False)
    plain = build()
    by_hand = ByHand(plain.transformer, method, branches)
    plain.transformer.forward = by_hand
    expected = execute(plain, None, FIRST, call, decode=False)[0]
    per_step = torch.tensor(by_hand.ran).view(10, branches).sum(1)
    assert executed.block_calls == (6 * per_step).tolist()
    assert set(per_step.tolist()) == set(range(branches + 1)), "the case is meant to mix computed and reused calls"
    assert torch.equal(latents, expected)


@pytest.mark.parametrize(("build", "call", "blocks", "branches"), PIPELINES)
def test_steps_are_reused_until_the_sum_reaches_the_threshold(build, call, blocks, branches):
    executed = check_contract(build, TeaCache(2.5, ONE), call)
    schedule = [1, 0, 0, 1, 0, 0, 1, 0, 0, 1]  # sums 1 and 2 are reused, 3 computes
    assert executed.block_calls == [branches * blocks * computed for computed in schedule]
    assert executed.attention_calls == [
        computed * branches * blocks * (2 if build is wan else 1) for computed in schedule
    ]
    assert executed.denoiser_calls == [branches] * 10


def test_a_sum_at_the_threshold_is_computed_and_threshold_0_computes_everything():
    assert execute(flux(), TeaCache(2.0, ONE), FIRST, CALL)[1].block_calls == [6, 0, 6, 0, 6, 0, 6, 0, 6, 6]
    image, executed = execute(flux(), TeaCache(0.0, IDENTITY), FIRST, CALL)
    assert executed.block_calls == [6] * 10
    assert torch.equal(image, execute(flux(), None, FIRST, CALL)[0])


def test_a_negative_prediction_is_added_as_it_is():
    executed = execute(flux(), TeaCache(0.0, (0.0, 0.0, 0.0, 0.0, -1.0)), FIRST, CALL)[1]
    assert executed.block_calls == [6, *[0] * 8, 6]


def test_ret_steps_computes_the_first_five_and_not_the_last():
    executed = check_contract(wan, TeaCache(100.0, ONE, ret_steps=True), VIDEO_CALL)
    assert executed.block_calls == [6] * 5 + [0] * 5


class Listener(SignalController):
    def __init__(self, projection):
        super().__init__(projection)
        self.heard = []

    def entered(self, run, context, signal):
        self.heard.append(signal.clone())


def _signals(pipe, call, projection=False):
    listener = Listener(projection)
    run_pipeline(pipe, FIRST, listener, {**call, "num_inference_steps": 2}, hidden=True, decode=False)
    return listener.heard


def _watched(pipe, module, call, pick):
    """What a part of the plain pipeline returns in each of its calls."""
    seen = []
    handle = module.register_forward_hook(lambda *call: seen.append(pick(call[-1]).clone()))
    execute(pipe, None, FIRST, {**call, "num_inference_steps": 2})
    handle.remove()
    return seen


@pytest.mark.parametrize(
    ("build", "call", "part", "pick", "projection"),
    [
        (flux, CALL, "transformer_blocks.0.norm1", lambda out: out[0], False),
        (wan, VIDEO_CALL, "condition_embedder", lambda out: out[0], False),
        (wan, VIDEO_CALL, "condition_embedder", lambda out: out[1].unflatten(1, (6, -1)), True),
        (cogvideox, VIDEO_CALL, "time_embedding", lambda out: out, False),
    ],
    ids=["flux", "wan", "wan-projection", "cogvideox"],
)
def test_the_signal_is_that_of_the_family(build, call, part, pick, projection):
    pipe = build()
    expected = _watched(pipe, pipe.transformer.get_submodule(part), call, pick)
    signals = _signals(pipe, call, projection)
    assert len(signals) == len(expected) == (4 if build is wan else 2)
    assert all(torch.equal(*pair) for pair in zip(signals, expected, strict=True))


def test_the_distance_is_relative_to_the_step_before():
    assert distance(torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, -2.0]])) == 0.5
    assert distance(torch.ones(1), torch.zeros(1)) == np.inf


@pytest.mark.parametrize(
    ("denoiser", "name"), [(denoiser, name) for denoiser, row in TeaCache.published().items() for name in row]
)
def test_published_settings_run(denoiser, name):
    build, call = BUILDS[denoiser]
    method = TeaCache.published()[denoiser][name]
    pipe = build()
    assert method.refusal(pipe, call) is None
    calls = execute(pipe, method, FIRST, call)[1].block_calls
    assert calls[0] == calls[-1] == max(calls) > 0


def test_published_thresholds():
    found = {denoiser: {name: m.threshold for name, m in row.items()} for denoiser, row in TeaCache.published().items()}
    assert found == {
        "FluxTransformer2DModel": {"slow": 0.25, "fast": 0.6},
        "WanTransformer3DModel": {"slow": 0.05, "fast": 0.08, "14B slow": 0.14, "14B fast": 0.2},
        "CogVideoXTransformer3DModel": {"slow": 0.1, "fast": 0.2, "5B slow": 0.1, "5B fast": 0.2},
        "STDiT3Transformer3DModel": {"slow": 0.1, "fast": 0.2},
    }


def test_nothing_is_held_after_a_run():
    pipe = flux()
    with TeaCache(0.2, IDENTITY).applied(pipe, CALL):
        execute(pipe, None, FIRST, CALL)
        controller = attachment_of(pipe).controller
        assert not controller._streams and controller._embedding is None


def test_without_coefficients_it_says_how_to_get_them():
    with pytest.raises(
        CalibrationError, match=r"no coefficients for this FluxTransformer2DModel; .*calibrated\(bench\)"
    ):
        TeaCache().applied(flux(), CALL)


def test_the_knob_ends_at_2():
    with pytest.raises(InvalidArgument, match="teacache: threshold is 3; choose 0 to 2"):
        TeaCache().at(3)


def test_what_it_cannot_serve_is_refused():
    method = TeaCache(coefficients=ONE, ret_steps=True)
    assert method.refusal(flux(), CALL) == "ret_steps is not defined for FluxTransformer2DModel"
    pipe = flux()
    with (
        pytest.raises(
            UnsupportedPipeline, match="FluxTransformer2DModel; leave it off, or use one of WanTransformer3DModel"
        ),
        method.applied(pipe, CALL),
    ):
        pass
    assert attachment_of(pipe) is None
    pipe.transformer = torch.nn.Linear(1, 1)
    assert TeaCache().refusal(pipe, CALL) == "its signal is not known for Linear"


def test_blocks_and_embeddings_that_pass_it_by_are_noticed():
    pipe = flux()
    with TeaCache(0.2, IDENTITY).applied(pipe, CALL):
        pipe.transformer.transformer_blocks = flux(seed=1).transformer.transformer_blocks
        with pytest.raises(CacheConflict, match="ran without passing by site 'hidden'"):
            execute(pipe, None, FIRST, CALL)
    pipe = wan()
    with TeaCache(0.2, IDENTITY).applied(pipe, VIDEO_CALL):
        pipe.transformer.condition_embedder = wan(seed=1).transformer.condition_embedder
        with pytest.raises(CacheConflict, match="the time embedding was made without passing by TeaCache"):
            execute(pipe, None, FIRST, VIDEO_CALL)


def test_the_block_stack_is_needed():
    pipe = flux()
    with (
        attached(pipe, Listener(False)),
        pytest.raises(CacheConflict, match="without the block stack; attach it with hidden=True"),
    ):
        execute(pipe, None, FIRST, CALL)
