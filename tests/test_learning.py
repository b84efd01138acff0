"STDP: random shapes against loops, and learners among the tools of PyTorch"
import copy, itertools, pickle
import pytest, torch
from torch import nn
from torch.testing import assert_close
from hypothesis import given, settings, strategies as st
from snnbook import functional, layer, learning
from snnbook.neuron import IFNode

TAU_PRE, TAU_POST = 5., 9.


def f_pre(w): return .3 * w.abs() + .1
def f_post(w): return .7 * (1 - w)


@pytest.fixture(autouse=True)
def _no_code_compiled_for_another_test():
    yield
    torch._dynamo.reset()


def spikes(*shape, p=.4): return (torch.rand(*shape) < p).double()


def slow(pre, post, w, window, simultaneous, decay=(1 - 1 / TAU_PRE, 1 - 1 / TAU_POST)):
    "Every pair of spikes of every synapse: `window(j, i)` lists where input `i` meets output `j`, `pre` and `post` are `[T, ...]`"
    dw = torch.zeros_like(w)
    for (o, c), places in window.items():
        for a, b in places:
            x, y = pre[(slice(None), *a)].nonzero().flatten().tolist(), post[(slice(None), *b)].nonzero().flatten().tolist()
            for i, j in itertools.product(x, y):
                if j > i or j == i and simultaneous in ('both', 'ltp'): dw[(o, *c)] += f_post(w)[(o, *c)] * decay[0]**(j - i)
                if j < i or j == i and simultaneous in ('both', 'ltd'): dw[(o, *c)] -= f_pre(w)[(o, *c)] * decay[1]**(i - j)
    return dw


@settings(max_examples=25, deadline=None)
@given(T=st.integers(1, 7), N=st.integers(1, 2), i=st.integers(1, 3), o=st.integers(1, 3), how=st.sampled_from(['both', 'ltp', 'ltd', 'none']), seed=st.integers(0, 99))
def test_linear_against_all_pairs(T, N, i, o, how, seed):
    torch.manual_seed(seed)
    m, pre, post = nn.Linear(i, o).double(), spikes(T, N, i), spikes(T, N, o)
    window = {(b, (a,)): [((n, a), (n, b)) for n in range(N)] for a in range(i) for b in range(o)}
    want = slow(pre, post, m.weight.detach(), window, how)
    learner = layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post, simultaneous=how).double()
    assert_close(sum(learner.delta(a, b, m) for a, b in zip(pre, post)), want)


@settings(max_examples=15, deadline=None)
@given(stride=st.integers(1, 3), padding=st.integers(0, 2), dilation=st.integers(1, 2), size=st.integers(5, 8), seed=st.integers(0, 99))
def test_conv1d_against_all_pairs(stride, padding, dilation, size, seed):
    torch.manual_seed(seed)
    m = nn.Conv1d(2, 2, 3, stride, padding, dilation).double()
    pre = spikes(4, 1, 2, size)
    post = spikes(4, *m(pre[0]).shape)
    window = {(b, (a, k)): [((0, a, p * stride + k * dilation - padding), (0, b, p)) for p in range(post.shape[-1]) if 0 <= p * stride + k * dilation - padding < size]
              for a in range(2) for b in range(2) for k in range(3)}
    learner = layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post).double()
    assert_close(sum(learner.delta(a, b, m) for a, b in zip(pre, post)), slow(pre, post, m.weight.detach(), window, 'both'))


CONVS = [(nn.Conv2d, (3, 4, 3), dict(), (7, 6)), (nn.Conv2d, (4, 6, (2, 3)), dict(stride=2, padding=1, groups=2), (7, 8)),
         (nn.Conv2d, (2, 2, 3), dict(padding='same', padding_mode='circular'), (6, 5)), (nn.Conv2d, (2, 2, 4), dict(padding='same'), (6, 5)),
         (nn.Conv2d, (2, 2, 3), dict(padding=(1, 2), padding_mode='reflect', dilation=(1, 2)), (6, 7)),
         (layer.Conv3d, (2, 3, 2), dict(stride=(1, 2, 1), padding=1), (3, 4, 5)), (nn.Conv1d, (2, 3, 3), dict(padding='valid'), (6,))]


@pytest.mark.parametrize('cls,args,kwargs,size', CONVS, ids=str)
def test_convolutions_are_a_linear_layer_with_shared_weights(cls, args, kwargs, size):
    "The traces belong to the neurons, so the pair rule is the weight gradient of the layer for spikes and traces"
    torch.manual_seed(0)
    m = cls(*args, **kwargs).double()
    pre = spikes(5, 2, args[0], *size)
    post = spikes(5, *m(pre[0]).shape)
    lam, mu, one, two, want = 1 - 1 / TAU_PRE, 1 - 1 / TAU_POST, 0., 0., 0.
    for a, b in zip(pre, post):
        one, two = one * lam + a, two * mu + b
        ltp, = torch.autograd.grad((m(one) * b).sum(), m.weight)
        ltd, = torch.autograd.grad((m(a) * two).sum(), m.weight)
        want = want + f_post(m.weight) * ltp - f_pre(m.weight) * ltd
    learner = layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post).double()
    assert_close(sum(learner.delta(a, b, m) for a, b in zip(pre, post)), want.detach())
    with torch.inference_mode(): learner.reset(); assert_close(sum(learner.delta(a, b, m) for a, b in zip(pre, post)), want.detach())
    with pytest.raises(ValueError, match='s_post has shape'): learner.delta(pre[0], post[0][..., :-1], m)


def test_both_step_modes_and_recorded_traces():
    torch.manual_seed(0)
    pre, post = spikes(6, 2, 3), spikes(6, 2, 4)
    one, two = (nn.Linear(3, 4).double() for _ in 'ab')
    two.load_state_dict(one.state_dict())
    s, m = (layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post, mode) for mode in 'sm')
    seen, kept = [], []
    for a, b in zip(pre, post):
        s.stdp(a, b, one, .1)
        seen.append(s.trace_pre); kept.append(s.trace_pre.clone())
    total = m.stdp(pre, post, two, .1)
    assert_close(two.weight, one.weight)
    assert_close(m.trace_post, s.trace_post)
    assert all(torch.equal(a, b) for a, b in zip(seen, kept)) and not torch.equal(seen[0], seen[1])
    assert total.shape == one.weight.shape and not total.requires_grad and one.weight.requires_grad
    with pytest.raises(RuntimeError, match='trace_pre'): m.stdp(pre[:, :1], post[:, :1], two)
    m.reset()
    assert m.stdp(pre[:0], post[:0], two).abs().sum() == 0
    for twin in copy.deepcopy(s), pickle.loads(pickle.dumps(s)): assert repr(twin) == repr(s) and torch.equal(twin.trace_pre, s.trace_pre) and twin.trace_pre is not s.trace_pre


def net(mode='s'):
    torch.manual_seed(0)
    m = nn.Sequential(layer.Conv2d(2, 3, 3, padding=1, bias=False), IFNode(), layer.Conv2d(3, 4, 3, bias=False), IFNode()).double()
    nn.init.uniform_(m[0].weight, 0, .3); nn.init.uniform_(m[2].weight, 0, .2)
    functional.set_step_mode(m, mode)
    return m


def watch(m, mode='s', **kw): return learning.STDPLearner(mode, m[2], m[3], TAU_PRE, TAU_POST, f_pre, f_post, **kw)


torch.manual_seed(0)
X = spikes(5, 3, 2, 6, 6)


def test_step_mode_batch_and_gradient():
    s, m = net(), net('m')
    a, b, c = watch(s), watch(m, 'm'), watch(m, 'm', reduction='mean')
    for x in X: s(x)
    y = m(X)
    assert 0 < y.mean() < 1
    da, db, dc = (l.step(on_grad=False, scale=2.) for l in (a, b, c))
    assert_close(da, db); assert_close(dc, db / 3)
    assert da.abs().sum() > 0 and m[2].weight.grad is None
    y.sum().backward()
    grad = m[2].weight.grad.clone()
    b.reset(); functional.reset_net(m); m(X); b.step(scale=2.)
    assert_close(m[2].weight.grad, grad - db)
    assert b.step(on_grad=False).abs().sum() == 0


def test_copies_watch_their_own_network():
    m = net(); learner = watch(m)
    m(X[0]); m(X[1])
    want = copy.deepcopy(learner).step(on_grad=False)
    for n, l in copy.deepcopy((m, learner)), copy.deepcopy((learner, m))[::-1], pickle.loads(pickle.dumps((m, learner))):
        assert l.synapse is n[2] and l.sn is n[3]
        assert_close(l.step(on_grad=False), want)
        functional.reset_net(n); l.reset(); n(X[0])
        assert [len(s) for s in l._seen.calls] == [1, 1] and [len(s) for s in learner._seen.calls] == [2, 2]
    alone = copy.deepcopy(m); alone(X[0])
    assert [len(s) for s in learner._seen.calls] == [2, 2]
    del learner
    m(X[2])


def test_inside_containers():
    torch.manual_seed(0)
    m = net('m'); learner = watch(m, 'm')
    m(X); want = learner.step(on_grad=False)
    folded = nn.Sequential(m[0], m[1], layer.SeqToANNContainer(nn.Conv2d(3, 4, 3, bias=False).double()), m[3])
    folded[2][0].load_state_dict(m[2].state_dict())
    functional.reset_net(m)
    other = learning.STDPLearner('m', folded[2][0], folded[3], TAU_PRE, TAU_POST, f_pre, f_post)
    folded(X)
    assert_close(other.step(on_grad=False), want)


def test_compiled():
    m = net(); learner = watch(m)
    for x in X: m(x)
    want = learner.step(on_grad=False)
    functional.reset_net(m); learner.reset()
    fast = torch.compile(m, backend='eager')
    for x in X: fast(x)
    assert_close(learner.step(on_grad=False), want)


def test_like_spikingjelly():
    sj = pytest.importorskip('spikingjelly.activation_based.learning', reason='compares with spikingjelly where it is installed')
    m = net()
    ours, theirs = watch(m), sj.STDPLearner('s', m[2], m[3], TAU_PRE, TAU_POST, f_pre, f_post)
    for x in X:
        m(x.double())
        assert_close(ours.step(on_grad=False), theirs.step(on_grad=False))


def test_mean_is_over_samples_and_not_over_places():
    torch.manual_seed(0)
    m, pre, post = nn.Linear(3, 2).double(), spikes(4, 5, 3), spikes(4, 5, 2)             # [N, places, C]
    total, mean = (layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post, reduction=r).delta(pre, post, m) for r in ('sum', 'mean'))
    assert_close(mean, total / 4)
    assert_close(layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post, reduction='mean').delta(pre[0, 0], post[0, 0], m),
                 layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post).delta(pre[0, 0], post[0, 0], m))


def test_sequences_that_do_not_fit():
    m, learner = nn.Linear(3, 2), layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post, 'm')
    before = m.weight.detach().clone()
    for pre, post in (torch.ones(4, 1, 3), torch.ones(5, 1, 2)), (None, torch.ones(4, 1, 2)), (torch.ones(4, 1, 3), torch.tensor(1.)):
        with pytest.raises(ValueError, match="STDPLearner with step_mode='m' expects two sequences"): learner.stdp(pre, post, m)
    assert torch.equal(m.weight, before) and learner.trace_pre == 0.
    with pytest.raises(ValueError, match="set step_mode='m'"):
        layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post).stdp(torch.ones(4, 1, 2, 6, 6), torch.ones(4, 1, 2, 4, 4), nn.Conv2d(2, 2, 3))


def test_input_given_by_name():
    synapse, sn = nn.Linear(3, 2), IFNode()
    learner = learning.STDPLearner('s', synapse, sn, TAU_PRE, TAU_POST)
    x = torch.ones(2, 3)
    sn(synapse(x)); want = learner.step(on_grad=False)
    sn.reset(); learner.reset()
    sn(synapse(input=x)); assert_close(learner.step(on_grad=False), want)


def test_each_sign_and_factor_of_the_formula():
    "dW = -f_pre(W) tr_post s_pre + f_post(W) s_post tr_pre, synapse by synapse, applied at every step"
    torch.manual_seed(0)
    m, pre, post = nn.Linear(3, 2).double(), spikes(8, 4, 3), spikes(8, 4, 2)
    learner, W, p, q = layer.STDPLearner(TAU_PRE, TAU_POST, f_pre, f_post), m.weight.detach().clone(), 0., 0.
    for a, b in zip(pre, post):
        p, q, dW = p - p / TAU_PRE + a, q - q / TAU_POST + b, torch.zeros_like(W)
        for n, o, i in itertools.product(range(4), range(2), range(3)):
            dW[o, i] += -f_pre(W)[o, i] * q[n, o] * a[n, i] + f_post(W)[o, i] * b[n, o] * p[n, i]
        W = W + .1 * dW
        assert_close(learner.stdp(a, b, m, .1), .1 * dW)
        assert_close(m.weight.detach(), W)
