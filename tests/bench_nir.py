"How fast an imported recurrent network runs beside a plain loop of the same equations and the peers' imports: python tests/bench_nir.py"
import sys, time, types, warnings
import nir, numpy as np, torch
from snnbook import nir_exchange as nx
from snnbook.functional import reset_net

warnings.simplefilter('ignore')
torch.set_num_threads(1)
R, DT = np.random.default_rng(0), 1e-4
T, N = 256, 140


def f(*shape): return R.normal(size=shape).astype('f4') * .3


def cuba(n):
    o = np.ones(n, 'f4')
    return dict(tau_syn=o * 1e-3, tau_mem=o * 2e-3, r=o * 20, v_leak=o * 0, v_threshold=o, v_reset=o * 0, w_in=o * 10)


W1, B1, WR, BR, W2, B2 = f(38, 12), f(38), f(38, 38), f(38), f(7, 38), f(7)
X = torch.tensor(f(T, N, 12)) * 3


def graph():
    nodes = dict(input=nir.Input({'input': np.array([12])}), fc1=nir.Affine(W1, B1), lif1=nir.CubaLIF(**cuba(38)), rec=nir.Affine(WR, BR),
                 fc2=nir.Affine(W2, B2), lif2=nir.CubaLIF(**cuba(7)), output=nir.Output({'output': np.array([7])}))
    return nir.NIRGraph(nodes, [('input', 'fc1'), ('fc1', 'lif1'), ('lif1', 'rec'), ('rec', 'lif1'), ('lif1', 'fc2'), ('fc2', 'lif2'), ('lif2', 'output')])


def hand():
    w1, b1, wr, br, w2, b2 = map(torch.tensor, (W1, B1, WR, BR, W2, B2))
    c1, c2 = ({k: torch.tensor(v) for k, v in cuba(n).items()} for n in (38, 7))
    i1 = v1 = z1 = torch.zeros(N, 38)
    i2 = v2 = torch.zeros(N, 7)
    lin, out = torch.nn.functional.linear, []
    def step(c, i, v, x):
        i = i + DT / c['tau_syn'] * (c['w_in'] * x - i)
        v = v + DT / c['tau_mem'] * (c['v_leak'] - v + c['r'] * i)
        z = v > c['v_threshold']
        return i, torch.where(z, c['v_reset'], v), z.float()
    for x in X:
        i1, v1, z1 = step(c1, i1, v1, lin(x, w1, b1) + lin(z1, wr, br))
        i2, v2, z2 = step(c2, i2, v2, lin(z1, w2, b2))
        out.append(z2)
    return torch.stack(out)


def stepped(m):
    def run():
        state, ys = None, []
        for x in X:
            y, state = m(x) if state is None else m(x, state)
            ys.append(y)
        return torch.stack(ys)
    return run


def ours():
    m = nx.import_from_nir(graph(), step_mode='m', return_state=False)
    def run(): reset_net(m); return m(X)
    return run


def spikingjelly():
    from spikingjelly.activation_based import nir_exchange
    return stepped(nir_exchange.import_from_nir(graph(), dt=DT))


def norse():
    try: import torch.utils.tensorboard  # noqa: F401
    except ImportError: sys.modules['torch.utils.tensorboard'] = types.SimpleNamespace(SummaryWriter=object)
    from norse.torch.utils.import_nir import from_nir
    return stepped(from_nir(graph(), dt=DT))


def main():
    runs = {'plain loop': hand, 'snnbook': ours()}
    for make in (spikingjelly, norse):
        try: runs[make.__name__] = make()
        except ImportError as e: print(f'{make.__name__}: not installed ({e})')
    times = {k: [] for k in runs}
    with torch.no_grad():
        want = hand()
        for _ in range(7):
            for k, run in runs.items():
                t = time.process_time()
                y = run()
                times[k].append(time.process_time() - t)
                if k in ('plain loop', 'snnbook'): assert torch.equal(y, want)
    base = sorted(times['plain loop'])[3]
    for k, ts in times.items(): print(f'{k:14} {sorted(ts)[3] * 1e3:7.1f} ms  {sorted(ts)[3] / base:5.2f} of the plain loop')


if __name__ == '__main__': main()
