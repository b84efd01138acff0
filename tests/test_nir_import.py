"NIR import beside an oracle that shares no code with the package: every node type, every form of graph, memory and file, both step modes"
import copy, pickle
import numpy as np, pytest, torch
from snnbook import nir_exchange as nx
from snnbook.functional import reset_net

nir = pytest.importorskip('nir')
DT, T, N = 1e-4, 40, 2
R = np.random.default_rng(0)


def rnd(*shape, lo=.5, hi=1.5): return R.uniform(lo, hi, shape)


def euler(kind, p, xs, dt=DT):  # one neuron type, straight from the equations, [T, N, *]
    v = i = 0.
    out = []
    for x in xs:
        if kind in ('I', 'IF'): v = v + dt * p['r'] * x if not (p['r'] == 1).all() else v + x
        else:
            if 'Cuba' in kind:
                i = i + dt / p['tau_syn'] * (-i + p['w_in'] * x)
                x = i
            v = v + dt / p.get('tau_mem', p.get('tau')) * ((p['v_leak'] - v) + p['r'] * x)
        if 'v_threshold' in p:
            z = v > p['v_threshold']
            v = np.where(z, p['v_reset'], v)
            out.append(z * 1.)
        else: out.append(v + np.zeros_like(x))
    return np.stack(out)


def params(kind, n):
    tau = lambda: rnd(*n, lo=3e-4, hi=3e-3)
    p = dict(r=rnd(*n, lo=2, hi=9))
    if kind in ('I', 'IF'): p['r'] = rnd(*n, lo=2e3, hi=9e3)
    if kind in ('LI', 'LIF'): p.update(tau=tau(), v_leak=rnd(*n, lo=-.3, hi=.3))
    if 'Cuba' in kind: p.update(tau_syn=tau(), tau_mem=tau(), v_leak=rnd(*n, lo=-.3, hi=.3), w_in=rnd(*n, lo=1, hi=4))
    if kind.endswith('IF') or kind == 'IF': p.update(v_threshold=rnd(*n), v_reset=rnd(*n, lo=-.4, hi=.2))
    return p


def graph(nodes, edges, shape, **ports):
    nodes = {'input': nir.Input({'input': np.array(shape)}), **nodes, 'output': nir.Output({'output': None})} if not ports else {**nodes, **ports}
    return nir.NIRGraph(nodes, edges, type_check=False)


def line(*nodes, shape):
    names = [f'n{i}' for i in range(len(nodes))]
    return graph(dict(zip(names, nodes)), list(zip(['input', *names], [*names, 'output'])), shape)


def run(g, x, want, tmp_path, **kw):
    "From memory and from a file, in both step modes and precisions; several calls; state by hand"
    path = tmp_path / 'g.nir'
    nx.save(nx.as_nir(nx.complete(g), type_check=False), path)
    as_tensor = lambda x, dt: {k: torch.tensor(v, dtype=dt) for k, v in x.items()} if isinstance(x, dict) else torch.tensor(x, dtype=dt)
    pick = lambda x, t: {k: v[t] for k, v in x.items()} if isinstance(x, dict) else x[t]
    stack = lambda ys: {k: torch.stack([y[k] for y in ys]) for k in ys[0]} if isinstance(ys[0], dict) else torch.stack(ys)
    def same(got, eps):
        for k in want if isinstance(want, dict) else [None]:
            a, b = (got, want) if k is None else (got[k], want[k])
            assert a.shape == b.shape
            assert np.abs(a.detach().double().numpy() - b).max() <= eps
    np.testing.assert_equal(np.abs(np.concatenate([np.ravel(v) for v in (want.values() if isinstance(want, dict) else [want])])).max() > 0, True)
    ref = nx.simulate(g, x, **kw)
    for k in want if isinstance(want, dict) else [None]: np.testing.assert_allclose(ref if k is None else ref[k], want if k is None else want[k], atol=1e-12)
    for source in (g, path):
        for dtype, eps in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            xt = as_tensor(x, dtype)
            m = nx.import_from_nir(source, dtype=dtype, step_mode='m', **kw)
            with torch.no_grad(): same(m(xt)[0], eps)
            reset_net(m)
            same(m(xt)[0], eps)                                        # with gradients
            m.step_mode = 's'
            reset_net(m)
            same(stack([m(pick(xt, t))[0] for t in range(T)]), eps)
            state, ys = None, []
            for t in range(T):
                y, state = m(pick(xt, t), state)
                ys.append(y)
            same(stack(ys), eps)
            m.step_mode = 'm'
            half = as_tensor({k: v[:T // 2] for k, v in x.items()} if isinstance(x, dict) else x[:T // 2], dtype)
            rest = as_tensor({k: v[T // 2:] for k, v in x.items()} if isinstance(x, dict) else x[T // 2:], dtype)
            reset_net(m)
            a, _ = m(half)
            m = pickle.loads(pickle.dumps(copy.deepcopy(m)))           # in the middle
            b, _ = m(rest)
            same({k: torch.cat([a[k], b[k]]) for k in a} if isinstance(a, dict) else torch.cat([a, b]), eps)
    return m


NEURONS = {'I': nir.I, 'IF': nir.IF, 'LI': nir.LI, 'LIF': nir.LIF, 'CubaLI': nir.CubaLI, 'CubaLIF': nir.CubaLIF}


@pytest.mark.parametrize('shape', [(5,), (2, 3, 4), (1,)], ids=str)
@pytest.mark.parametrize('kind', NEURONS)
def test_neuron(kind, shape, tmp_path):
    p, x = params(kind, shape), R.normal(.4, 1, (T, N, *shape))
    run(line(NEURONS[kind](**p), shape=shape), x, euler(kind, p, x), tmp_path)


@pytest.mark.parametrize('kind', ['IF', 'LIF', 'CubaLIF'])
def test_neuron_special_values(kind, tmp_path):
    x = R.normal(.4, 1, (T, N, 3))
    ones = np.ones(3)
    for change in (dict(r=ones), dict(v_leak=0 * ones, v_reset=0 * ones), dict(r=ones * 1e4 if kind == 'IF' else ones * 7), dict(w_in=ones), dict(v_reset=-ones)):
        p = params(kind, (3,))
        p.update({k: v for k, v in change.items() if k in p})
        run(line(NEURONS[kind](**p), shape=(3,)), x, euler(kind, p, x), tmp_path)


T2 = lambda f: lambda x: np.stack([f(torch.tensor(a)).numpy() for a in x])
F = torch.nn.functional
A = lambda *s: R.normal(size=s)
W1, W2, B3, B4 = A(4, 2, 3), A(4, 3, 3, 3), A(3), A(4)
WG, WR = A(4, 1, 3, 3), A(4, 3, 3, 5)
tt = torch.tensor
def late(x, d): return np.concatenate([0 * x[:d], x[:len(x) - d]])


STATELESS = {
    'linear': (nir.Linear(B_ := A(3, 5)), (5,), lambda x: x @ B_.T),
    'affine': (nir.Affine(B_, B3), (5,), lambda x: x @ B_.T + B3),
    'linear 3-d': (nir.Linear(L3 := A(2, 3, 5)), (2, 5), lambda x: np.einsum('aoi,tnai->tnao', L3, x)),
    'affine 4-d': (nir.Affine(L4 := A(2, 2, 3, 5), b4 := A(2, 2, 3)), (2, 2, 5), lambda x: np.einsum('aboi,tnabi->tnabo', L4, x) + b4),
    'scale': (nir.Scale(S3 := A(2, 3)), (2, 3), lambda x: x * S3),
    'threshold': (nir.Threshold(S4 := A(4)), (4,), lambda x: (x > S4) * 1.),
    'flatten 0': (nir.Flatten({'input': np.array([2, 3, 4])}, 0, -1), (2, 3, 4), lambda x: x.reshape(T, N, 24)),
    'flatten 1': (nir.Flatten({'input': np.array([2, 3, 4])}, 1, -1), (2, 3, 4), lambda x: x.reshape(T, N, 2, 12)),
    'flatten 0 1': (nir.Flatten({'input': np.array([2, 3, 4])}, 0, 1), (2, 3, 4), lambda x: x.reshape(T, N, 6, 4)),
    'flatten negative': (nir.Flatten(None, -3, -2), (2, 3, 4), lambda x: x.reshape(T, N, 6, 4)),
    'conv1d': (nir.Conv1d(9, W1, 2, 1, 2, 1, B4), (2, 9), T2(lambda x: F.conv1d(x, tt(W1), tt(B4), 2, 1, 2))),
    'conv1d same': (nir.Conv1d(None, W1, 1, 'same', 1, 1, B4), (2, 9), T2(lambda x: F.conv1d(x, tt(W1), tt(B4), 1, 'same'))),
    'conv1d groups': (nir.Conv1d(None, W1, 1, 'valid', 1, 2, B4), (4, 9), T2(lambda x: F.conv1d(x, tt(W1), tt(B4), groups=2))),
    'conv2d': (nir.Conv2d((8, 7), W2, 1, 0, 1, 1, B4), (3, 8, 7), T2(lambda x: F.conv2d(x, tt(W2), tt(B4)))),
    'conv2d stride': (nir.Conv2d((8, 7), W2, (2, 1), (1, 2), (1, 2), 1, B4), (3, 8, 7), T2(lambda x: F.conv2d(x, tt(W2), tt(B4), (2, 1), (1, 2), (1, 2)))),
    'conv2d same': (nir.Conv2d((8, 7), W2, 1, 'same', 1, 1, B4), (3, 8, 7), T2(lambda x: F.conv2d(x, tt(W2), tt(B4), 1, 'same'))),
    'conv2d groups': (nir.Conv2d(None, WG, 1, 1, 1, 2, B4), (2, 6, 6), T2(lambda x: F.conv2d(x, tt(WG), tt(B4), 1, 1, 1, 2))),
    'conv2d 3x5': (nir.Conv2d(None, WR, 1, 0, 1, 1, B4), (3, 8, 7), T2(lambda x: F.conv2d(x, tt(WR), tt(B4)))),
    'sumpool': (nir.SumPool2d(np.array([2, 3]), np.array([2, 1]), np.array([0, 0])), (2, 6, 7), T2(lambda x: 6 * F.avg_pool2d(x, (2, 3), (2, 1)))),
    'sumpool padding': (nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1])), (2, 6, 7), T2(lambda x: 4 * F.avg_pool2d(x, 2, 2, 1))),
    'avgpool': (nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), (2, 6, 7), T2(lambda x: F.avg_pool2d(x, 2))),
    'avgpool padding': (nir.AvgPool2d(np.array([3, 3]), np.array([2, 2]), np.array([1, 1])), (2, 6, 7), T2(lambda x: F.avg_pool2d(x, 3, 2, 1))),
    'delay': (nir.Delay(np.array([0, 1e-4, 2.5e-3])), (3,), lambda x: np.stack([late(x[..., i], d) for i, d in enumerate((0, 1, 25))], -1)),
    'delay equal': (nir.Delay(np.full((2, 2), 3e-4)), (2, 2), lambda x: np.concatenate([0 * x[:3], x[:-3]])),
}


@pytest.mark.parametrize('name', STATELESS)
def test_stateless(name, tmp_path):
    node, shape, f = STATELESS[name]
    x = R.normal(size=(T, N, *shape))
    run(line(node, shape=shape), x, f(x), tmp_path)


def loop(step, y0, T=T):  # y[t] = step(t, y[t-1])
    ys = [y0]
    for t in range(T): ys.append(step(t, ys[-1]))
    return ys[1:]


def lif_step(p, v, x):
    v = v + DT / p['tau'] * ((p['v_leak'] - v) + p['r'] * x)
    z = v > p['v_threshold']
    return np.where(z, p['v_reset'], v), z * 1.


PL, PL2 = params('LIF', (4,)), params('LIF', (4,))
WREC, BREC, WIN = A(4, 4), A(4), A(4, 3)


def recurrent():
    return graph(dict(w_rec=nir.Affine(WREC, BREC), lif=nir.LIF(**PL), fc=nir.Linear(WIN)),
                 [('w_rec', 'lif'), ('lif', 'w_rec'), ('lif', 'output'), ('fc', 'lif'), ('input', 'fc')], (3,))


@pytest.mark.parametrize('feedback', ['rest', 'zero'])
def test_recurrent(feedback, tmp_path):
    x = R.normal(size=(T, N, 3))
    g = recurrent()
    back, v, want = (BREC if feedback == 'rest' else 0), 0., []
    for a in x:
        v, z = lif_step(PL, v, a @ WIN.T + back)
        back = z @ WREC.T + BREC
        want.append(z)
    run(g, x, np.stack(want), tmp_path, feedback=feedback)


def test_self_loop_and_two_layer_loop(tmp_path):
    x = R.normal(.5, 1, size=(T, N, 4))
    v, z, want = 0., 0., []
    for a in x:
        v, z = lif_step(PL, v, a + z)
        want.append(z)
    run(graph(dict(lif=nir.LIF(**PL)), [('input', 'lif'), ('lif', 'lif'), ('lif', 'output')], (4,)), x, np.stack(want), tmp_path)
    v1 = v2 = back = 0.
    want = []
    for a in x:
        v1, z1 = lif_step(PL, v1, a + back)
        v2, z2 = lif_step(PL2, v2, z1 @ WREC.T)
        back = z2 @ WREC
        want.append(z2)
    g = graph(dict(a=nir.LIF(**PL), b=nir.LIF(**PL2), w=nir.Linear(WREC), u=nir.Linear(np.ascontiguousarray(WREC.T))),
              [('u', 'a'), ('b', 'output'), ('b', 'u'), ('w', 'b'), ('a', 'w'), ('input', 'a')], (4,))
    run(g, x, np.stack(want), tmp_path)


def test_nested_recurrent_three_deep(tmp_path):
    x = R.normal(size=(T, N, 3))
    g = graph(dict(lif=nir.LIF(**PL), w=nir.Affine(WREC, BREC)), [('input', 'lif'), ('lif', 'w'), ('w', 'lif'), ('lif', 'output')], (4,))
    for _ in range(2): g = graph(dict(inner=g), [('input', 'inner'), ('inner', 'output')], (4,))
    g = graph({'fc': nir.Linear(WIN), 'sub.graph': g}, [('input', 'fc'), ('fc', 'sub.graph'), ('sub.graph', 'output')], (3,))
    back, v, want = BREC, 0., []
    for a in x:
        v, z = lif_step(PL, v, a @ WIN.T + back)
        back = z @ WREC.T + BREC
        want.append(z)
    m = run(g, x, np.stack(want), tmp_path)
    p = nx.import_from_nir(g, step_mode='m', probes=['sub.graph.inner.inner.lif'])
    p(torch.tensor(x).float())
    assert torch.equal(p.probes['sub.graph.inner.inner.lif'].double().detach(), tt(np.stack(want)))
    assert m is not p


def test_fan_in_skip_diamond_and_two_edges_into_output(tmp_path):
    x = R.normal(size=(T, N, 4))
    s = A(4)
    g = graph(dict(a=nir.Linear(WREC), b=nir.Scale(s), c=nir.LIF(**PL)),
              [('input', 'a'), ('input', 'b'), ('a', 'c'), ('b', 'c'), ('input', 'c'), ('c', 'output'), ('b', 'output')], (4,))
    xs = x @ WREC.T + x * s + x
    run(g, x, euler('LIF', PL, xs) + x * s, tmp_path)


def test_several_inputs_and_outputs(tmp_path):
    x = dict(left=R.normal(size=(T, N, 3)), right=R.normal(size=(T, N, 4)))
    nodes = dict(left=nir.Input({'input': np.array([3])}), right=nir.Input({'input': np.array([4])}), fc=nir.Linear(WIN), lif=nir.LIF(**PL),
                 top=nir.Output({'output': None}), low=nir.Output({'output': None}))
    g = nir.NIRGraph(nodes, [('left', 'fc'), ('fc', 'lif'), ('right', 'lif'), ('lif', 'top'), ('fc', 'low')], type_check=False)
    u = x['left'] @ WIN.T
    run(g, x, dict(top=euler('LIF', PL, u + x['right']), low=u), tmp_path)


NAMES = ['a.b', 'a_b', 'for', 'with space', '神经元', 'forward', '0', '1.weight', 'x-y', 'state', 'probes', 'input_1', 'self']


def test_any_names_in_any_order(tmp_path):
    x = R.normal(size=(T, N, 4))
    s = {n: A(4) for n in NAMES}
    edges = list(zip(['input', *NAMES], [*NAMES, 'output']))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(NAMES))
        g = graph({NAMES[i]: nir.Scale(s[NAMES[i]]) for i in order}, [edges[i] for i in np.random.default_rng(seed).permutation(len(edges))], (4,))
        run(g, x, x * np.prod([s[n] for n in NAMES], 0), tmp_path)


def test_delay_in_a_cycle_and_a_bias_without_input(tmp_path):
    x = R.normal(size=(T, N, 4))
    g = graph(dict(lif=nir.LIF(**PL), d=nir.Delay(np.full(4, 3e-4)), w=nir.Linear(WREC)), [('input', 'lif'), ('lif', 'd'), ('d', 'w'), ('w', 'lif'), ('lif', 'output')], (4,))
    zs, v = [], 0.
    for t in range(T):  # three steps of delay, and one of the edge that closes the cycle
        v, z = lif_step(PL, v, x[t] + (zs[t - 4] @ WREC.T if t >= 4 else 0))
        zs.append(z)
    run(g, x, np.stack(zs), tmp_path)


def test_conv_net(tmp_path):
    x = R.normal(.3, 1, size=(T, N, 3, 8, 8))
    P1, P2, WF = params('LIF', (4, 8, 8)), params('CubaLIF', (5,)), A(5, 64)
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    g = line(nir.Conv2d((8, 8), W2, 1, 1, 1, 1, B4), nir.LIF(**P1), pool, nir.Flatten(None, 0, -1), nir.Linear(WF), nir.CubaLIF(**P2), shape=(3, 8, 8))
    y = euler('LIF', P1, T2(lambda a: F.conv2d(a, tt(W2), tt(B4), padding=1))(x))
    run(g, x, euler('CubaLIF', P2, T2(lambda a: F.avg_pool2d(a, 2))(y).reshape(T, N, 64) @ WF.T), tmp_path)


def test_methods_and_resets():
    x = R.normal(.5, 1, size=(T, N, 4))
    for method in ('euler', 'exact', 'mixed'):
        for reset in ('value', 'subtract'):
            for start in ('zero', 'leak', 'reset'):
                for fire in ('>', '>='):
                    kw = dict(method=method, reset=reset, start=start, fire=fire)
                    for node in (nir.LIF(**PL), nir.CubaLIF(**params('CubaLIF', (4,))), nir.IF(**params('IF', (4,)))):
                        g = line(node, shape=(4,))
                        m = nx.import_from_nir(g, dtype=torch.float64, step_mode='m', return_state=False, **kw)
                        np.testing.assert_allclose(m(tt(x)).detach().numpy(), nx.simulate(g, x, **kw), atol=1e-12)


def test_compile_and_training():
    x = torch.tensor(R.normal(size=(T, N, 3))).float()
    g = recurrent()
    m = nx.import_from_nir(g, trainable=True, step_mode='m', return_state=False)
    want = m(x)
    want.sum().backward()
    grads = {n: p.grad.clone() for n, p in m.named_parameters()}
    assert all(g.abs().sum() > 0 for n, g in grads.items() if n.split('.')[1] != 'v_reset')
    reset_net(m)
    m.step_mode = 's'
    fast = torch.compile(m, backend='eager')
    got = torch.stack([fast(a) for a in x])
    assert torch.equal(got, want)
