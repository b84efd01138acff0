"Frames of events beside those of tonic"
import numpy as np, pytest, torch
from snnbook.data import event_frames


@pytest.mark.parametrize('by,bins', [('time', 'n_time_bins'), ('count', 'n_event_bins')])
def test_tonic_frames(by, bins):
    tonic = pytest.importorskip('tonic', reason='needs the peer tonic')
    rng, n = np.random.default_rng(0), 4000
    e = np.zeros(n, np.dtype([('x', 'i2'), ('y', 'i2'), ('t', 'i8'), ('p', bool)]))
    e['x'], e['y'], e['p'], e['t'] = rng.integers(0, 7, n), rng.integers(0, 5, n), rng.random(n) < .5, np.sort(rng.choice(10**6, n, False))
    theirs = torch.tensor(tonic.transforms.ToFrame(sensor_size=(7, 5, 2), **{bins: 8})(e)).float()
    gap = (theirs - event_frames(e, 8, (5, 7), by)).abs().sum()
    assert gap <= (1 if by == 'time' else 0) and theirs.sum() > n - 2      # by time, tonic leaves the last event out
