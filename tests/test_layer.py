"What the chapters on walking through time and on layers leave out: random shapes, and compiled layers"
import shutil
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from hypothesis import given, settings, strategies as st
from snnbook import functional, layer
from snnbook.base import MemoryModule


class Leaky(MemoryModule):
    def __init__(self, step_mode='s'): super().__init__(); self.register_memory('v', 0.); self.step_mode = step_mode
    def single_step_forward(self, x): self.ready(x, 'v'); self.v = self.v / 2 + x; return self.v


def net(): return nn.Sequential(layer.Conv1d(2, 3, 3), Leaky(), layer.BatchNorm1d(3), layer.Flatten(), layer.Linear(18, 4), Leaky()).double().eval()


@settings(max_examples=30, deadline=None)
@given(T=st.integers(0, 9), N=st.integers(0, 3), split=st.integers(1, 11), cut=st.integers(0, 9))
def test_every_way_through_time_is_the_same(T, N, split, cut):
    torch.manual_seed(T * N)
    m, x_seq = net(), torch.randn(T, N, 2, 8).double()
    ways = dict(walk=functional.multi_step_forward(x_seq, m), last=functional.t_last_multi_step_forward(x_seq.movedim(0, -1), reset(m)).movedim(-1, 0))
    functional.set_step_mode(reset(m), 'm')
    ways |= dict(whole=m(x_seq), pieces=functional.chunk_multi_step_forward(split, x_seq, reset(m)))
    head = reset(m)(x_seq[:cut])
    saved = functional.memories(m)
    twin = net(); twin.load_state_dict(m.state_dict()); functional.set_step_mode(twin, 'm'); functional.load_memories(twin, saved)
    ways['resumed'] = torch.cat([head, twin(x_seq[cut:])])
    for name, y in ways.items():
        assert y.shape == (T, N, 4), name
        assert_close(y, ways['walk'], msg=lambda m, name=name: f'{name}: {m}')


def reset(m): functional.reset_net(m); return m


@settings(max_examples=30, deadline=None)
@given(T=st.integers(1, 5), N=st.integers(1, 3), C=st.integers(2, 5))
def test_losses_against_loops(T, N, C):
    o, y = torch.randn(T, N, C).double(), torch.randint(C, (N,))
    ce = nn.functional.cross_entropy
    assert_close(functional.temporal_efficient_training_cross_entropy(o, y), sum(ce(o[t], y) for t in range(T)) / T)
    assert_close(functional.rate_cross_entropy(o, y), ce(sum(o[t] for t in range(T)) / T, y))
    assert functional.rate_cross_entropy(o, y) <= functional.temporal_efficient_training_cross_entropy(o, y) + 1e-12


compiler = pytest.mark.skipif(not shutil.which('g++') and not shutil.which('clang++'), reason='torch.compile on the CPU needs a C++ compiler')


@compiler
def test_compiled_layers_give_the_same_numbers():
    torch.manual_seed(0)
    m = nn.Sequential(layer.Conv2d(1, 2, 3), layer.BatchNorm2d(2), layer.MaxPool2d(2), layer.SeqToANNContainer(nn.ReLU()), layer.Flatten(), layer.Linear(18, 4))
    functional.set_step_mode(m, 'm')
    x = torch.randn(4, 3, 1, 8, 8)
    want = m.eval()(x)
    torch._dynamo.reset()                                     # sizes seen by other tests would make these dynamic
    assert_close(torch.compile(m, fullgraph=True, dynamic=False)(x), want)


@pytest.mark.parametrize('C', [1, 3])
def test_a_convolutional_network_is_exported_for_any_batch_and_any_number_of_steps(C):
    from snnbook import neuron
    m = nn.Sequential(layer.Conv2d(C, 4, 3, padding=1), neuron.LIFNode(), layer.MaxPool2d(2), layer.Flatten(), layer.Linear(64, 5), neuron.ParametricLIFNode()).eval()
    functional.set_step_mode(m, 'm')
    dims = {d: torch.export.Dim('TN'[d], min=2, max=64) for d in (0, 1)}
    exported = torch.export.export(m, (torch.rand(4, 6, C, 8, 8),), dynamic_shapes=(dims,)).module()
    x = torch.rand(7, 3, C, 8, 8) * 5
    assert torch.equal(exported(x), reset(m)(x)) and m[1].v.any()
    for args in (), (1, 2), (2,), (-2,), (1, -2):             # merged axes are those of a single step
        assert torch.equal(layer.Flatten(*args, step_mode='m')(x), torch.stack([nn.Flatten(*args)(s) for s in x]))


def test_module_of_a_gate_named_reset_or_a_compiled_one_is_reset_once():
    calls = []
    class Counting(Leaky):
        def reset(self): calls.append(1); super().reset()
    functional.reset_net(torch.compile(Counting(), backend='eager'))
    assert calls == [1]


def test_like_spikingjelly():
    sj = pytest.importorskip('spikingjelly.activation_based.functional', reason='compares with spikingjelly where it is installed')
    o, y = torch.randn(4, 3, 5), torch.tensor([0, 4, 2])
    assert_close(functional.temporal_efficient_training_cross_entropy(o, y), sj.temporal_efficient_training_cross_entropy(o, y))
    assert_close(functional.redundant_one_hot(y, 5, 3), sj.redundant_one_hot(y, 5, 3))
    s = (torch.rand(2, 3, 8) > .7).float()
    assert_close(functional.first_spike_index(s), sj.first_spike_index(s))
    conv, x = nn.Conv1d(2, 3, 3), torch.randn(4, 3, 2, 8)
    for f in 'multi_step_forward', 'seq_to_ann_forward': assert_close(getattr(functional, f)(x, conv), getattr(sj, f)(x, conv))
    for f in 't_last_multi_step_forward', 't_last_seq_to_ann_forward': assert_close(getattr(functional, f)(x.movedim(0, -1), conv), getattr(sj, f)(x.movedim(0, -1), conv))


def test_memories_of_another_library_are_refused_by_name():
    class Foreign(nn.Module): # SpikingJelly's neurons declare their memories by this method too
        def register_memory(self, name, value): setattr(self, name, value)
        def forward(self, x): return x
    for make in layer.SeqToANNContainer, layer.TLastSeqToANNContainer:
        with pytest.raises(ValueError, match=r"'1.0' \(Foreign\)"): make(nn.ReLU(), nn.Sequential(Foreign()))
    with pytest.raises(ValueError, match='Foreign'): functional.seq_to_ann_forward(torch.rand(3, 2, 4), Foreign())


@pytest.mark.parametrize('shape', [(3, 2, 4), (3, 2, 4, 5), (3, 2, 4, 5, 6), (3, 2, 4, 2, 3, 5)], ids=len)
def test_threshold_dependent_batch_norm_like_spikingjelly(shape):
    sj = pytest.importorskip('spikingjelly.activation_based.layer', reason='compares with spikingjelly where it is installed')
    name = f'ThresholdDependentBatchNorm{max(1, len(shape) - 3)}d'
    ours, theirs = (getattr(m, name)(.5, 1.5, shape[2]) for m in (layer, sj))
    assert ours.step_mode == theirs.step_mode == 'm' and ours.state_dict().keys() == theirs.state_dict().keys()
    torch.manual_seed(0)
    for _ in range(3): x = torch.randn(shape); torch.testing.assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize('mode', 'sm')
def test_votes_like_spikingjelly(mode):
    sj = pytest.importorskip('spikingjelly.activation_based.layer', reason='compares with spikingjelly where it is installed')
    x = torch.rand(*([4] if mode == 'm' else []), 5, 30)
    for size in 1, 3, 10: assert torch.allclose(layer.VotingLayer(size, mode)(x), sj.VotingLayer(size, mode)(x))
    assert layer.VotingLayer().voting_size == sj.VotingLayer().voting_size
