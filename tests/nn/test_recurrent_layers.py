"""What both layers do alike: layouts, lengths, packing, stacking, dropout, states, errors, and their company."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn import IncrementalRNN, TimeAdaptiveRNN
from lightning_efficient.profiling import count_macs

LAYERS = [
    (TimeAdaptiveRNN, {}),
    (TimeAdaptiveRNN, {"gate": "inside", "inner_steps": 3, "activation": "tanh", "step_size": 0.3}),
    (IncrementalRNN, {}),
    (IncrementalRNN, {"inner_steps": 2, "rank": 2, "activation": "sigmoid", "step_size": 0.1}),
]
every_layer = pytest.mark.parametrize(("kind", "options"), LAYERS)
both_layers = pytest.mark.parametrize("kind", [TimeAdaptiveRNN, IncrementalRNN])


def make(kind, options, **more):
    torch.manual_seed(0)
    rnn = kind(3, 4, **options, **more).double()
    for parameter in rnn.parameters():  # strong enough that a mistake shows
        parameter.data += 0.2 * torch.randn_like(parameter)
    return rnn


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@every_layer
def test_shapes_are_those_of_a_gru(kind, options):
    rnn, gru = (make(kind, options, num_layers=2), nn.GRU(3, 4, 2).double())
    for shape, hx in [((5, 2, 3), (2, 2, 4)), ((5, 3), (2, 4)), ((1, 2, 3), None)]:
        x = draw(*shape)
        state = None if hx is None else draw(*hx)
        assert [tensor.shape for tensor in rnn(x, state)] == [tensor.shape for tensor in gru(x, state)]


@every_layer
def test_last_state_is_the_last_output(kind, options):
    output, state = make(kind, options)(draw(5, 2, 3))
    same(state[0], output[-1])


@every_layer
def test_batch_first_only_swaps_dimensions(kind, options):
    rnn, other = make(kind, options), make(kind, options, batch_first=True)
    x = draw(5, 2, 3)
    same(other(x.transpose(0, 1))[0].transpose(0, 1), rnn(x)[0])


@every_layer
def test_unbatched_equals_a_batch_of_one(kind, options):
    rnn, x, hx = make(kind, options, num_layers=2), draw(5, 3), draw(2, 4)
    output, state = rnn(x, hx)
    expected = rnn(x.unsqueeze(1), hx.unsqueeze(1))
    same(output, expected[0][:, 0])
    same(state, expected[1][:, 0])


@every_layer
def test_layers_equal_single_layers_stacked_by_hand(kind, options):
    rnn, x, hx = make(kind, options, num_layers=3), draw(5, 2, 3), draw(3, 2, 4)
    output, state = rnn(x, hx)
    values, ends = x, []
    for layer in range(3):
        single = kind(3 if layer == 0 else 4, 4, **options).double()
        suffix = f"_l{layer}"
        weights = {
            name.replace(suffix, "_l0"): value for name, value in rnn.state_dict().items() if name.endswith(suffix)
        }
        single.load_state_dict(weights)
        values, end = single(values, hx[layer : layer + 1])
        ends.append(end)
    same(output, values)
    same(state, torch.cat(ends))


@every_layer
def test_dropout_acts_between_layers_and_in_training_only(kind, options):
    x = draw(5, 2, 3)
    single, stack = make(kind, options, dropout=0.5), make(kind, options, num_layers=2, dropout=0.5)
    same(single(x)[0], single.eval()(x)[0])
    first, second = stack(x)[0], stack(x)[0]
    assert not torch.equal(first, second)
    plain = make(kind, options, num_layers=2)
    same(stack.eval()(x)[0], plain(x)[0])


@every_layer
@pytest.mark.parametrize("layers", [1, 2])
def test_lengths_equal_each_sequence_alone(kind, options, layers):
    rnn, x, hx = make(kind, options, num_layers=layers), draw(6, 4, 3), draw(layers, 4, 4)
    lengths = [3, 6, 0, 4]
    padded = x.clone()
    for position, length in enumerate(lengths):
        padded[length:, position] = float("nan")
    output, state = rnn(padded, hx, lengths=torch.tensor(lengths))
    for position, length in enumerate(lengths):
        assert not output[length:, position].any()
        if length == 0:
            assert torch.equal(state[:, position], hx[:, position])
            continue
        alone, end = rnn(x[:length, position], hx[:, position])
        same(output[:length, position], alone)
        same(state[:, position], end)


@both_layers
def test_gradients_with_lengths_equal_those_of_each_sequence_alone(kind):
    rnn, lengths = make(kind, {}, batch_first=True, num_layers=2), [2, 5, 3]
    x, hx = draw(3, 5, 3).requires_grad_(), draw(2, 3, 4).requires_grad_()
    arguments = [x, hx, *rnn.parameters()]
    output, state = rnn(x, hx, lengths=lengths)
    together = torch.autograd.grad(output.square().sum() + state.sum(), arguments)
    loss = torch.zeros((), dtype=torch.float64)
    for position, length in enumerate(lengths):
        output, state = rnn(x[position, :length], hx[:, position])
        loss = loss + output.square().sum() + state.sum()
    for one, other in zip(together, torch.autograd.grad(loss, arguments), strict=True):
        same(one, other)


@both_layers
def test_lengths_of_zero_only_keep_the_state(kind):
    rnn, hx = make(kind, {}), draw(1, 2, 4).requires_grad_()
    output, state = rnn(draw(3, 2, 3), hx, lengths=[0, 0])
    assert output.shape == (3, 2, 4)
    assert not output.any()
    assert torch.equal(state, hx)
    state.sum().backward()
    assert torch.equal(hx.grad, torch.ones_like(hx))


@both_layers
def test_full_lengths_change_nothing(kind):
    rnn, x = make(kind, {}), draw(3, 2, 3)
    assert torch.equal(rnn(x, lengths=[3, 3])[0], rnn(x)[0])


@every_layer
@pytest.mark.parametrize("sort", [True, False])
def test_packed_equals_padded_with_lengths(kind, options, sort):
    rnn, hx = make(kind, options, num_layers=2), draw(2, 3, 4)
    lengths = [5, 3, 2] if sort else [2, 5, 3]
    sequences = [draw(length, 3) for length in lengths]
    packed = pack_sequence(sequences, enforce_sorted=sort)
    output, state = rnn(packed, hx)
    padded = nn.utils.rnn.pad_sequence(sequences)
    expected, last = rnn(padded, hx, lengths=lengths)
    found, sizes = pad_packed_sequence(output)
    assert sizes.tolist() == lengths
    same(found, expected)
    same(state, last)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    # and as torch's own layer packs it
    theirs = nn.GRU(3, 4).double()(packed)[0]
    assert (output.sorted_indices is None) == (theirs.sorted_indices is None)


@every_layer
def test_halves_with_the_state_carried_equal_the_whole(kind, options):
    rnn, x, hx = make(kind, options, batch_first=True, max_length=4), draw(2, 7, 3), draw(1, 2, 4)
    output, state = rnn(x, hx)
    for at in range(1, 7):
        first, half = rnn(x[:, :at], hx)
        before = {"previous_input": x[:, at - 1]} if kind is TimeAdaptiveRNN else {}
        second, end = rnn(x[:, at:], half, start=at, **before)
        same(torch.cat([first, second], 1), output)
        same(end, state)


@every_layer
def test_any_number_of_steps_runs_with_step_sizes_for_four(kind, options):
    rnn = make(kind, options, max_length=4)
    assert rnn.step_size_l0.shape == (rnn.inner_steps, 4)
    x = draw(9, 2, 3)
    output = rnn(x)[0]
    with torch.no_grad():
        rnn.step_size_l0[:, 3] += 0.1  # all later steps take the last one
        changed = rnn(x)[0]
    same(output[:3], changed[:3])
    assert (output[3:] != changed[3:]).any(-1).all()


@every_layer
def test_gradients_reach_the_initial_state_and_every_parameter(kind, options):
    rnn, hx = make(kind, options, num_layers=2), draw(2, 2, 4).requires_grad_()
    output, _ = rnn(draw(5, 2, 3), hx)
    output.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in (hx, *rnn.parameters()))


@every_layer
def test_float32_and_reference_agree_with_float64(kind, options):
    rnn, x = make(kind, options), draw(20, 2, 3)
    output = rnn(x)[0]
    reference = make(kind, options, implementation="reference")
    same(reference(x)[0], output)
    single = rnn.float()(x.float())[0]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), output, rtol=1e-4, atol=1e-5)


@every_layer
def test_autocast_changes_nothing_and_half_precision_weights_little(kind, options):
    rnn = make(kind, options).float()
    x = torch.randn(20, 2, 3)
    output, _ = rnn(x)
    output.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in rnn.parameters()]
    rnn.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        cast, state = rnn(x)
        loss = cast.square().sum()
        if not options.get("rank"):  # torch's own backward passes do not expect to run in here
            loss.backward()
    if options.get("rank"):
        loss.backward()
    assert torch.equal(cast, output)
    assert state.dtype == torch.float32
    assert all(map(torch.equal, gradients, (parameter.grad for parameter in rnn.parameters())))
    half, state = rnn.bfloat16()(x.bfloat16())
    assert half.dtype == state.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), output, rtol=0.1, atol=0.05)


@every_layer
def test_no_grad_copies_pickles_and_state_dicts_give_the_same(kind, options):
    rnn, x = make(kind, options, num_layers=2), draw(5, 2, 3)
    output = rnn(x)[0]
    fresh = kind(3, 4, num_layers=2, **options).double()
    fresh.load_state_dict(rnn.state_dict())
    with torch.no_grad():
        plain = rnn(x)[0]
    assert not plain.requires_grad
    for other in (plain, copy.deepcopy(rnn)(x)[0], pickle.loads(pickle.dumps(rnn))(x)[0], fresh(x)[0]):
        assert torch.equal(other, output)


@both_layers
def test_step_sizes_are_learned_or_fixed(kind):
    learned, fixed = kind(3, 4, step_size=0.02, inner_steps=2), kind(3, 4, step_size=0.02, learn_step_size=False)
    assert isinstance(learned.step_size_l0, nn.Parameter)
    assert learned.step_size_l0.tolist() == pytest.approx([0.02, 0.02])
    assert "step_size_l0" in fixed.state_dict()
    assert all(not name.startswith("step_size") for name, _ in fixed.named_parameters())


@every_layer
def test_macs_of_the_layer_are_counted(kind, options):
    # H=4, F=3, T=5: products with weights only
    rnn = kind(3, 4, batch_first=True, **options)
    count = count_macs(rnn, torch.zeros(2, 5, 3))
    assert count.uncounted == ()
    blocks, ahead = (3, 1) if kind is TimeAdaptiveRNN else (1, 0)
    per_step = (blocks + ahead) * 3 * 4 + (blocks + rnn.inner_steps - 1) * 4 * 4
    once = 0 if not options.get("rank") else 4 * 2 * 4 + 4 * 4 * 3 + 4 * 4 * 4  # per call, so halved per sample
    assert count.macs == 5 * per_step + once // 2


@pytest.mark.parametrize(("kind", "options"), [LAYERS[1]])
def test_a_compiled_module_around_it_gives_the_same(kind, options):
    rnn = make(kind, options)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnn

        def forward(self, x):
            return self.rnn(2 * x)[0].relu()

    x = draw(5, 2, 3)
    expected = Around()(x)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in rnn.parameters()]
    rnn.zero_grad()
    output = torch.compile(Around(), backend="eager")(x)
    output.sum().backward()
    same(output, expected)
    for parameter, gradient in zip(rnn.parameters(), gradients, strict=True):
        same(parameter.grad, gradient)


@both_layers
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda rnn: rnn(draw(5, 2, 7)), r"\(5, 2, 7\).*\(T, N, F\).*input_size = 3"),
        (lambda rnn: rnn(draw(3)), r"has shape \(3,\)"),
        (lambda rnn: rnn(draw(0, 2, 3)), "0 time steps"),
        (lambda rnn: rnn(draw(5, 2, 3), draw(1, 3, 4)), r"hx has shape \(1, 3, 4\).*\(1, 2, 4\)"),
        (lambda rnn: rnn(draw(5, 2, 3), draw(2, 4)), r"hx has shape \(2, 4\).*\(1, 2, 4\)"),
        (lambda rnn: rnn(draw(5, 3), draw(1, 1, 4)), r"hx has shape \(1, 1, 4\).*without a batch needs \(1, 4\)"),
        (lambda rnn: rnn(draw(5, 2, 3), lengths=[5, 6]), r"5 to 6.*\[0, 5\]"),
        (lambda rnn: rnn(draw(5, 2, 3), lengths=[5, -1]), r"-1 to 5.*\[0, 5\]"),
        (lambda rnn: rnn(draw(5, 2, 3), lengths=[5]), r"shape \(1,\).*2 sequences"),
        (lambda rnn: rnn(draw(5, 2, 3), lengths=torch.tensor([5.0, 2.0])), "float32.*whole number"),
        (lambda rnn: rnn(draw(5, 3), lengths=[5]), "no batch; leave them out"),
        (lambda rnn: rnn(draw(5, 2, 3), start=-1), "start=-1"),
        (lambda rnn: rnn(pack_padded_sequence(draw(5, 2, 3), [5, 2]), lengths=[5, 2]), "PackedSequence"),
        (lambda rnn: rnn(pack_padded_sequence(draw(5, 2, 7), [5, 2])), r"\(7, 7\).*input_size = 3"),
        (lambda rnn: rnn(draw(5, 2, 3).long()), "int64"),
    ],
)
def test_inputs_that_do_not_fit_are_one_clear_error(kind, call, says):
    with pytest.raises(ConfigurationError, match=says):
        call(make(kind, {}))


@both_layers
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_layers": 0}, "num_layers=0"),
        ({"inner_steps": 0}, "inner_steps=0"),
        ({"inner_steps": 1.5}, "inner_steps=1.5"),
        ({"max_length": 0}, "max_length=0"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"step_size": 0.0}, "step_size=0.0"),
        ({"activation": "relo"}, "Did you mean 'relu'"),
        ({"implementation": "fast"}, "implementation='fast'"),
    ],
)
def test_options_that_cannot_work_are_one_clear_error(kind, options, says):
    with pytest.raises(ConfigurationError, match=says):
        kind(3, 4, **options)
