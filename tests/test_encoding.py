"Encoders: properties that hold for any input, and SpikingJelly's numbers where it is installed"
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import tensor
from snnbook import encoding

numbers = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20)

@settings(deadline=None, max_examples=50)
@given(numbers, st.integers(1, 40), st.sampled_from(['linear', 'log']))
def test_latency_fires_once_and_in_order(x, T, f):
    s = encoding.LatencyEncoder(T, f).encode(tensor(x))
    assert (s.sum(0) == 1).all()
    t_f = s.argmax(0)[tensor(x).argsort()]
    assert (t_f.diff() <= 0).all()

@settings(deadline=None, max_examples=50)
@given(numbers, st.integers(1, 60))
def test_phase_is_the_floor_of_k_bits(x, K):
    x = tensor(x, dtype=torch.float64) * (1 - 2.**-K)
    enc = encoding.WeightedPhaseEncoder(K)
    back = enc.decode(enc.encode(x))
    assert (back <= x).all() and (x - back < 2.**-K).all()

@settings(deadline=None, max_examples=30)
@given(numbers, st.integers(1, 9), st.integers(1, 20), st.sampled_from([encoding.LatencyEncoder, encoding.WeightedPhaseEncoder]))
def test_single_and_multi_step_agree_and_repeat(x, T, steps, cls):
    x = tensor(x) / 2
    single, multi = cls(T), cls(T, step_mode='m')
    s = multi(x.expand(steps, *x.shape))
    assert torch.equal(torch.stack([single(x) for _ in range(steps)]), s)
    assert torch.equal(s[T:], s[:-T]) if steps > T else True
    assert single.t == multi.t == steps % T
    single.reset(); assert single.spike is None and single.t == 0

@pytest.fixture
def peer(): return pytest.importorskip('spikingjelly.activation_based.encoding', exc_type=ImportError)

@pytest.mark.parametrize('T', [2, 5, 30])
@pytest.mark.parametrize('f', ['linear', 'log'])
def test_latency_like_spikingjelly(peer, T, f):
    x = torch.rand(50, generator=torch.Generator().manual_seed(T))
    ours, theirs = encoding.LatencyEncoder(T, enc_function=f), peer.LatencyEncoder(T, enc_function=f)
    for _ in range(2 * T + 1): assert torch.equal(ours(x), theirs(x))

@pytest.mark.parametrize('K', [1, 4, 16])
def test_phase_like_spikingjelly(peer, K):
    x = torch.rand(50, generator=torch.Generator().manual_seed(K)) * (1 - 2.**-K)
    ours, theirs = encoding.WeightedPhaseEncoder(K), peer.WeightedPhaseEncoder(K)
    for _ in range(2 * K + 1): assert torch.equal(ours(x), theirs(x))

def test_poisson_like_spikingjelly(peer):
    x = torch.rand(1000)
    torch.manual_seed(0); a = encoding.PoissonEncoder()(x)
    torch.manual_seed(0); b = peer.PoissonEncoder()(x)
    assert torch.equal(a, b)
