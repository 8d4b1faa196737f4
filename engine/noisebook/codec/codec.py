"""The loop: de-noise, select, back-trace. Encoder and decoder are the same walk; the decoder is told the tokens.

x0_hat = D(y, lam)                                          the network
token  = select(x0 - x0_hat)                                the encoder chooses, the decoder reads
y      = x0_hat + keep (y - x0_hat) + gain z(token)         keep = lam_down / lam, gain^2 = lam_next^2 - lam_down^2
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from noisebook.backbones import Backbone
from noisebook.codebook import NOT_FINITE, START_STEP, Codebook, start_noise
from noisebook.codec import packing
from noisebook.codec.encoder import Lookahead
from noisebook.codec.solvers import ode
from noisebook.codec.stream import Layout, Plan, Tokens
from noisebook.errors import BackboneError, CodecMismatchError, FormatError, ImageError, SpecError
from noisebook.format import container
from noisebook.rules.rules import Rule, rule_of
from noisebook.runtime.cuda_graphs import Graphs, constants
from noisebook.runtime.profiler import stage
from noisebook.spec.schedule import even_levels
from noisebook.spec.spec import CONDITION, CodecSpec

fixed_start = constants()(start_noise)
MOST_DRAWN = 1000  # steps in which a decoder may draw from a condition alone
Chooser = Callable[[Tokens, Tensor], Tensor]  # (which tokens, x0_hat as views) -> tokens int64 [B, T]


class Codec:
    """A codec: its specification and the denoiser it names.

    Token tensors are int64 [B, L], ordered by (start, step, unit, bin); `layout` says what each position is. A codec of a
    given size always gives the same number of tokens. On CUDA a whole encode or decode is one graph for each shape of
    batch, unless `graphs` is False or the backbone cannot be captured. Raises CodecMismatchError if `backbone` is not the
    one of `spec`, BackboneError if it has no fingerprint, SpecError if it cannot walk the schedule.

    Of encoders alone: `effort` is how often the tokens of a step are chosen anew (rule `bins`), `candidates` how many sets
    of tokens are tried at each step, at so many network calls (lookahead.py).
    """

    def __init__(self, spec: CodecSpec, backbone: Backbone, graphs: bool = True, effort: int = 0, candidates: int = 1):
        if not backbone.fingerprint:
            raise BackboneError(
                f"backbone {backbone.name!r} has no fingerprint, so a file could not tell it from another: "
                "set fingerprint_of({}, net.state_dict())"
            )
        if backbone.fingerprint != spec.fingerprint:
            raise CodecMismatchError(
                f"the codec needs backbone {spec.backbone!r} ({spec.fingerprint[:16]}), not {backbone.name!r} "
                f"({backbone.fingerprint[:16]})"
            )
        if spec.lam_first == math.inf and not backbone.pure_noise:
            raise SpecError(f"backbone {backbone.name!r} knows no pure noise: begin at a finite lam")
        if spec.condition and spec.condition != backbone.condition_grid:
            raise SpecError(
                f"backbone {backbone.name!r} has no condition tokens of {spec.condition}, but "
                f"{backbone.condition_grid or 'none'}"
            )
        for lam in [s.lam for s in spec.schedule] + [v for v in spec.finish_levels if v > 0]:
            if backbone.snap(lam) != lam:
                raise SpecError(f"backbone {backbone.name!r} has no level lam = {lam}; nearest: {backbone.snap(lam)}")
        if not 1 <= candidates <= 64:
            raise SpecError(f"candidates must be from 1 to 64, not {candidates}")
        self.spec, self.backbone, self.candidates = spec, backbone, candidates
        self.rule = rule_of(spec, effort)
        self.start_rule = Rule(Codebook(spec.law, spec.start_vocabulary, spec.seed))
        self.graphs = Graphs(graphs and backbone.capturable)
        #: (height, width) that `layout` and `decode` assume when none is given: the backbone's own, or 512 x 768
        self.default_size = backbone.native_size or (512, 768)

    @property
    def device(self) -> torch.device:
        """Where the backbone lives and the work is done."""
        tensor = next(self.backbone.parameters(), None)
        tensor = tensor if tensor is not None else next(self.backbone.buffers(), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    @property
    def calls(self) -> int:
        """Network calls of a decode, the finish included."""
        return self.calls_of(None)

    def calls_of(self, steps: int | None) -> int:
        """Network calls of a decode of so many steps, see `decode`."""
        walked, levels = len(self.spec.schedule), len(self.spec.finish_levels)
        if steps is not None and not walked:
            return 2 * steps - 1 if self.spec.finish == "heun" else steps
        finish = {"mean": 1, "heun": 2 * levels - 1}.get(self.spec.finish, levels) if self.spec.lam_last > 0 else 0
        return (walked if steps is None else steps) + finish

    @property
    def encode_calls(self) -> int:
        """Network calls of an encode, without what it takes to see the result."""
        if self.candidates == 1:
            return self._coded
        return self.candidates * (len(self.spec.schedule) + (self.spec.lam_last > 0))

    @property
    def _coded(self) -> int:
        """Steps of the schedule that an encoder must walk: all up to the last that has tokens."""
        return max((i + 1 for i, step in enumerate(self.spec.schedule) if step.bins), default=0)

    # ---- sizes and layouts ----------------------------------------------------------------------------------------------
    def plan(self, height: int, width: int) -> Plan:
        """What the codec does with images of that size. Raises SpecError if tokens or blocks do not fit it."""
        spec, (rows, columns) = self.spec, (self.spec.rows, self.spec.columns)
        padded = self.backbone.padded(height, width)
        state = self.backbone.state_shape(*padded)
        for axis, (count, name) in enumerate(((rows, "rows"), (columns, "columns"))):
            for _ in range(count):
                if state[1 + axis] % count == 0:
                    break
                padded = self.backbone.padded(padded[0] + (axis == 0), padded[1] + (axis == 1))
                state = self.backbone.state_shape(*padded)
            else:
                raise SpecError(f"an image of {height} x {width} cannot be cut into {count} {name} of equal size")
        dims, tokens, offset = math.prod(state) // spec.units, [], 0
        bins, start = spec.bins_for(height, width)
        if runs := spec.condition_runs(height, width):
            if self.spec.condition_runs(*padded) != runs:
                raise SpecError(
                    f"blocks pad an image of {height} x {width} so that it has other condition tokens: use 1 x 1"
                )
            tokens.append(Tokens(CONDITION, 0, runs, 0))
            offset = tokens[-1].count
        for step, count in enumerate([start, *bins], -1):
            if count:
                (self.start_rule if step < 0 else self.rule).check(count, dims)  # raises where they do not fit
                runs = spec.start_runs(count) if step < 0 else spec.step_runs(count)
                tokens.append(Tokens(START_STEP if step < 0 else step, count, runs, offset))
                offset += tokens[-1].count
        return Plan(height, width, padded, state, (rows, columns), tuple(tokens), spec.rule == "poisson")

    def layout_for(self, height: int, width: int) -> Layout:
        """Step, unit, bin and vocabulary of every token position for images of that size."""
        return self.plan(height, width).layout()

    @property
    def layout(self) -> Layout:
        """`layout_for` the default size."""
        return self.layout_for(*self.default_size)

    # ---- the public verbs: checks on the host, one call of a core, one look at its status ------------------------------
    def encode(self, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W], uint8 or float32 in [-1, 1] -> tokens int64 [B, L] on the codec's device.

        weights  float [B or 1, 1, H, W] >= 0: what an error at each pixel counts; tokens go where it counts more. A decoder
                 need not know them (Turbo-DDCM's priority maps).
        Raises ImageError for other shapes, dtypes or values that are not finite.
        """
        return self._encode(images, weights=weights)[0]

    def reconstruct(self, images: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(tokens, images): what `encode` gives and what `decode` will make of it, in one walk."""
        tokens, decoded = self._encode(images, finish=True, weights=weights)
        return tokens, decoded

    def encode_packed(self, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """As `encode`, but packed as in a file: uint8 [B, bytes], row by row `container.pack` of the tokens.

        Packed on the device, unless a vocabulary is not a power of two or the rule has a code of its own. Raises SpecError
        for rule `poisson` and several images, whose payloads differ in length: pack their tokens one by one."""
        if self._packs:
            return self._encode(images, packed=True, weights=weights)[0]
        if self.spec.rule == "poisson" and len(images) > 1:
            raise SpecError("payloads of rule poisson differ in length: encode, then container.pack each image's tokens")
        tokens, runs = self.encode(images, weights).cpu().numpy(), self.plan(*images.shape[2:]).runs
        rows = [np.frombuffer(container.pack(row, runs), np.uint8) for row in tokens]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None, steps: int | None = None) -> Tensor:
        """Tokens int64 [B, L] -> images float32 [B, C, H, W], about in [-1, 1]; `size` is (H, W), default `default_size`.

        steps  so many steps of the schedule alone, then the finish from there: what the beginning of the stream says. The
               tokens of later steps are not needed. Of a codec without steps: so many of the finish, even in the time of a
               rectified flow; with a CoD 25 for realism, 1 for the least error
        Any tokens inside their vocabulary decode. Raises CodecMismatchError if L or a token does not fit the layout,
        SpecError for more steps than there are.
        """
        plan = self._shortened(self.plan(*(size or self.default_size)), steps)
        tokens = tokens[:, : plan.length] if steps is not None and tokens.ndim == 2 else tokens
        if tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.shape[1] != plan.length:
            raise CodecMismatchError(
                f"this codec takes int64 tokens [B, {plan.length}] for images of {plan.height} x "
                f"{plan.width}, not {tokens.dtype} {list(tokens.shape)}"
            )
        valid, decoded = self._run(partial(self._decode_core, plan), tokens, "decode", plan)
        if not valid:
            raise CodecMismatchError("a token is outside its vocabulary: the tokens are of another codec")
        return decoded

    def decode_packed(self, payload: Tensor, size: tuple[int, int] | None = None, steps: int | None = None) -> Tensor:
        """What `decode` makes of the tokens in payloads of `encode_packed`, uint8 [B, bytes], unpacked on the device if
        they are packed there. Raises FormatError for another length and for bits that no tokens pack to."""
        plan = self.plan(*(size or self.default_size))
        length = None if self.spec.rule == "poisson" else -(-container.packed_bits(plan.runs) // 8)
        if payload.ndim != 2 or payload.dtype != torch.uint8 or length not in (None, payload.shape[1]):
            took = f"{payload.dtype} {list(payload.shape)}"
            raise FormatError(
                f"this codec takes payloads of {length or 'some'} bytes for images of {plan.height} x "
                f"{plan.width}, not {took}: damaged, or of another codec"
            )
        if not self._packs:
            rows = [container.unpack(row.tobytes(), plan.runs) for row in payload.cpu().numpy()]
            return self.decode(torch.from_numpy(np.stack(rows)), size, steps)
        if steps is not None:
            return self.decode(packing.unpack(payload.to(self.device), plan.runs)[0], size, steps)
        valid, decoded = self._run(partial(self._decode_core, plan), payload, "decode", plan)
        if not valid:
            raise FormatError("padding bits are not zero: the file is damaged")
        return decoded

    @property
    def _packs(self) -> bool:
        """Whether a token is a whole number of bits, so that it is packed on the device."""
        whole = all(v & (v - 1) == 0 for v in (self.spec.vocabulary, self.spec.start_vocabulary))
        return whole and self.spec.rule in ("bins", "pursuit")

    def _shortened(self, plan: Plan, steps: int | None) -> Plan:
        if steps is None:
            return plan
        most = len(self.spec.schedule) or MOST_DRAWN
        if not 1 <= steps <= most:
            raise SpecError(f"steps must be from 1 to {most}, not {steps}")
        kept = tuple(some for some in plan.tokens if some.step == START_STEP or some.step < steps)
        return replace(plan, tokens=kept, steps=steps)

    def _encode(
        self, images: Tensor, finish: bool = False, packed: bool = False, weights: Tensor | None = None
    ) -> list[Tensor]:
        images = self._check_images(images)
        plan = self.plan(*images.shape[2:])
        core = partial(self._encode_core, plan, finish, packed)
        given = (images,) if weights is None else (images, self._check_weights(weights, images))
        (in_range, finite, *errors), *out = self._run(core, given, "encode", plan, finish, packed)
        if not in_range:
            raise ImageError("float images must be finite and in [-1, 1]; uint8 images are scaled for you")
        if not finite:
            raise ImageError(NOT_FINITE)
        _warn_of_stall(errors)
        return out

    @torch.no_grad()
    def _run(
        self, core: Callable[..., tuple[Tensor, ...]], given: Tensor | tuple[Tensor, ...], name: str, *options: object
    ) -> list:
        """Calls a core, as a graph where there is one to be had: its status as a list of numbers, then its tensors."""
        with stage(name):
            tensors = tuple(t.to(self.device) for t in (given if isinstance(given, tuple) else (given,)))
            status, *out = self.graphs(core, tensors, (name, *options, self.backbone.version))
            return [status.tolist(), *out]  # the one time that the host waits for the device

    # ---- the cores: all on the device, without host synchronisation ------------------------------------------------------
    def _encode_core(
        self, plan: Plan, finish: bool, packed: bool, images: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Images uint8 or float32 -> (status, tokens or payload, decoded images if `finish`).

        status: float32 [2 + runs], whether the input was in range, whether all was finite, and the error
        before the tokens of the start and of each step that has any."""
        x = images.float() * (2 / 255) - 1 if images.dtype == torch.uint8 else images
        bottom, right = plan.padded[0] - plan.height, plan.padded[1] - plan.width
        padded = F.pad(x, (0, right, 0, bottom), mode="replicate")
        looked_at = any(some.step != CONDITION for some in plan.tokens)  # else no autoencoder has to run
        x0 = plan.views(self.backbone.encode(padded) if looked_at else x.new_zeros(len(x), *plan.state))
        counts = None if weights is None else plan.views(self._state_weights(plan, weights, (right, bottom)))
        chosen: list[Tensor] = [torch.zeros(self.candidates * len(x), 0, dtype=torch.int64, device=x.device)]
        status = [(x.abs() <= 1.001).all().float()]
        ahead = Lookahead(self.candidates, x0, counts, self.spec.seed)

        def pick(which: Tokens, x0_hat: Tensor) -> Tensor:
            if which.step == CONDITION:
                chosen.append(self.backbone.ask(padded).flatten(1).repeat(self.candidates, 1))
                return chosen[-1]
            residual = ahead.x0 - x0_hat
            status.append(residual.square().mean())
            residual = ahead.shaken(residual if ahead.counts is None else residual * ahead.counts, which.step)
            with stage("select"):
                if which.step == START_STEP:
                    tokens = self.start_rule.select(residual, which.bins, START_STEP, self.spec.schedule[0])
                else:
                    tokens = self.rule.select(residual, which.bins, which.step, self.spec.schedule[which.step])
            chosen.append(tokens)
            return tokens

        def settle(y: Tensor, x0_hat: Tensor) -> tuple[Tensor, Tensor]:
            best = ahead.best(plan.views(x0_hat))
            chosen[-1] = chosen[-1][best]
            return y[best], x0_hat[best]

        if self.candidates == 1:
            y = self.walk(plan, len(x), pick, finish)
        else:
            (y, cond), lam = self._steps(plan, len(ahead.x0), pick, False, settle), self.spec.lam_last
            y = settle(y, self._denoise(y, lam, cond) if lam > 0 else y)[0][: len(x)]
            cond = self.backbone.condition(chosen[1][: len(x)], *plan.padded) if self.spec.condition else None
            y = self._finish(plan, y, cond) if finish else y
        status.insert(1, torch.isfinite(y).all().float())
        tokens = torch.cat(chosen, 1)[: len(x)]
        if packed:
            with stage("pack"):
                tokens = packing.pack(tokens, plan.runs)
        return torch.stack(status), tokens, *((y,) if finish else ())

    def _decode_core(self, plan: Plan, given: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens int64 [B, L] or payload uint8 [B, bytes] -> (status bool [], whether they were valid; decoded images)."""
        with stage("pack"):
            read = packing.unpack if given.dtype == torch.uint8 else packing.clamp
            tokens, valid = read(given, plan.runs)

        def told(which: Tokens, _: Tensor) -> Tensor:
            return tokens[:, which.offset : which.offset + which.count]

        return valid, self.walk(plan, len(tokens), told)

    # ---- the loop -------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def walk(self, plan: Plan, batch: int, choose: Chooser, finish: bool = True) -> Tensor:
        """From the start through all steps to the finish. Only `choose` differs between encoder and decoder: told which
        tokens are due and x0_hat as views [B, U, D], it gives them, int64 [B, T]. Without `finish` the walk ends where no
        more tokens are due."""
        y, cond = self._steps(plan, batch, choose, finish)
        with stage("finish"):
            return self._finish(plan, y, cond) if finish else y

    def _steps(
        self,
        plan: Plan,
        batch: int,
        choose: Chooser,
        whole: bool,
        settle: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Any]:
        """(the state after the steps, what they were told). `settle` is an encoder's that looks ahead: given y and x0_hat of
        all it tries, it says with which to go on."""
        spent = {some.step: some for some in plan.tokens}
        with stage("start"):
            cond = self._told(plan, batch, spent.get(CONDITION), choose)
            y = plan.join(self._start(plan, batch, spent.get(START_STEP), choose))
        schedule = self.spec.schedule[: plan.steps if whole or settle else self._coded]
        for i, step in enumerate(schedule):
            x0_hat = self._denoise(y, step.lam, cond)
            y, x0_hat = settle(y, x0_hat) if settle else (y, x0_hat)
            y = x0_hat + y if step.lam == math.inf else y  # y was eps alone: no multiple of x0 shows in pure noise
            if i in spent:
                views = plan.views(x0_hat)
                tokens = choose(spent[i], views)
                with stage("backtrace"):
                    y = plan.join(self.rule.backtrace(plan.views(y), views, tokens, spent[i].bins, i, step))
            else:
                y = x0_hat + step.keep * (y - x0_hat)
        return y, cond

    def _denoise(self, y: Tensor, lam: float, cond: Any = None) -> Tensor:
        with stage("network"):
            x0_hat = self.backbone(y, lam) if cond is None else self.backbone(y, lam, cond)
        if x0_hat.shape != y.shape:
            raise BackboneError(
                f"backbone {self.backbone.name!r} gave {list(x0_hat.shape)} for a state {list(y.shape)}: "
                "its channels, size or multiple are not those of its network"
            )
        return x0_hat

    def _told(self, plan: Plan, batch: int, which: Tokens | None, choose: Chooser) -> Any:
        """What the backbone makes of the condition's tokens, or None."""
        if which is None:
            return None
        tokens = choose(which, torch.zeros(batch, plan.units, plan.dims, device=self.device))
        return self.backbone.condition(tokens, *plan.padded)

    def _start(self, plan: Plan, batch: int, which: Tokens | None, choose: Chooser) -> Tensor:
        """The initial state as views [B, U, D]: lam_0 times seeded noise, or times the codewords of the first tokens.

        At lam_0 = inf it is the noise itself, see `Backbone.denoise`."""
        lam = self.spec.lam_first
        lam = 1.0 if lam == math.inf else lam
        if which is None:
            z = fixed_start(plan.units, plan.dims, self.spec.seed, self.device)
            return (lam * z).expand(batch, -1, -1)
        nothing = torch.zeros(batch, plan.units, plan.dims, dtype=torch.float32, device=self.device)
        tokens = choose(which, nothing)
        return lam * self.start_rule.noise(tokens, (plan.units, plan.dims), which.bins, START_STEP)

    def _finish(self, plan: Plan, y: Tensor, cond: Any) -> Tensor:
        """From the last level to an image: one x0_hat, or the probability-flow ODE to 0."""
        schedule, kind = self.spec.schedule, self.spec.finish
        last = len(schedule) if plan.steps is None else min(plan.steps, len(schedule))
        lam, levels = self.spec.lam_last, self.spec.finish_levels
        if plan.steps is not None:
            lam = schedule[last - 1].lam_next if last else lam
            levels = (*(s.lam_next for s in schedule[last:]), *levels) if last else even_levels(lam, plan.steps)
            kind = "ab2" if kind == "mean" and not last else kind
        if lam > 0 and kind == "mean":
            y = self._denoise(y, lam, cond)
        elif lam > 0:
            told = None if cond is None else self.backbone.guided(cond)
            y = ode(kind, lambda y, lam: self._denoise(y, lam, told), y, lam, levels)
        return self.backbone.decode(y)[:, :, : plan.height, : plan.width]

    def _check_images(self, images: Tensor) -> Tensor:
        """The images on the device, uint8 or float32. Values are looked at there, by the core."""
        c = self.backbone.channels
        if images.ndim != 4 or images.shape[1] != c or 0 in images.shape:
            raise ImageError(f"images must be [B, {c}, H, W] and not empty, not {list(images.shape)}")
        if images.dtype == torch.uint8:
            return images.to(self.device)
        if not images.is_floating_point():
            raise ImageError(f"images must be uint8, or float in [-1, 1], not {images.dtype}")
        return images.to(self.device, torch.float32)

    def _check_weights(self, weights: Tensor, images: Tensor) -> Tensor:
        shape = (len(images), 1, *images.shape[2:])
        if not weights.is_floating_point() or weights.shape not in (shape, (1, *shape[1:])):
            raise ImageError(f"weights must be float {list(shape)}, one a pixel, not {weights.dtype} {list(weights.shape)}")
        if not torch.isfinite(weights).all() or weights.min() < 0 or weights.max() <= 0:
            raise ImageError("weights must be finite, 0 or above, and somewhere above 0")
        return weights.to(self.device, torch.float32)

    def _state_weights(self, plan: Plan, weights: Tensor, padding: tuple[int, int]) -> Tensor:
        """Weights of pixels -> of the state, [B or 1, C, h, w]: means over what a place of a latent state covers."""
        w = F.pad(weights, (0, padding[0], 0, padding[1]), mode="replicate")
        c, h, width = plan.state
        return F.adaptive_avg_pool2d(w, (h, width)).expand(-1, c, -1, -1)


def _warn_of_stall(errors: list[float]) -> None:
    """The paper's sign of a codebook too small: late tokens no longer bring the prediction nearer."""
    if len(errors) < 8:
        return
    first, middle, last = errors[1], errors[len(errors) // 2], errors[-1]
    if last > 0.95 * middle and last > 0.1 * first:
        warnings.warn(
            "quality stalls: the second half of the tokens hardly improved the prediction; use a larger "
            "vocabulary or more bins, or end at another level",
            RuntimeWarning,
            stacklevel=4,
        )
