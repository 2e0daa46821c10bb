"""Environments whose right answers are known."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Identity(gymnasium.Env):
    """Say the number you see: reward 1 if the action equals the observation; ten steps an episode."""

    def __init__(self, numbers: int = 4, start: int = 0) -> None:
        self.observation_space = spaces.Discrete(numbers, start=start)
        self.action_space = spaces.Discrete(numbers, start=start)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = int(self.np_random.integers(self.action_space.n)) + int(self.action_space.start)
        return self.seen, {}

    def step(self, action):
        assert self.action_space.contains(action)
        reward = float(action == self.seen)
        self.seen = int(self.np_random.integers(self.action_space.n)) + int(self.action_space.start)
        return self.seen, reward, False, False, {}


class Match(gymnasium.Env):
    """Do what you see, in an action space of each kind: 0 a step is the best, −1 for each part that is wrong, −(a − seen)² for each number."""

    def __init__(self, kind: str = "box") -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = {
            "multi_discrete": spaces.MultiDiscrete([2, 2], start=[3, -1]),
            "multi_binary": spaces.MultiBinary(2),
            "box": spaces.Box(np.float32([2.0, -1.0]), np.float32([6.0, 0.0])),
        }[kind]

    def _observe(self):
        self.seen = self.np_random.integers(2, size=2)
        return self.seen.astype(np.float32), {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe()

    def step(self, action):
        assert self.action_space.contains(action)
        if isinstance(self.action_space, spaces.Box):
            low, high = self.action_space.low, self.action_space.high
            reward = -float(np.square((action - low) / (high - low) - self.seen).sum())
        else:
            reward = -float((action - getattr(self.action_space, "start", 0) != self.seen).sum())
        return self._observe()[0], reward, False, False, {}


class Faint(Match):
    """Match seen from afar: what is seen lies 0.1 apart around 1,000, and a mistake costs 1,000."""

    def __init__(self) -> None:
        super().__init__("multi_binary")
        self.observation_space = spaces.Box(1000.0, 1000.1, (2,), np.float32)

    def _observe(self):
        return 1000 + np.float32(0.1) * super()._observe()[0], {}

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 1000 * reward, *rest


class Arms(gymnasium.Env):
    """Pull an allowed arm: the higher, the better, 0 a step is the best. Only info says which are allowed; behind the end none is."""

    def __init__(self, counts: tuple[int, ...] = (4,)) -> None:
        self.observation_space, self.counts = spaces.Box(0.0, 1.0, (1,), np.float32), tuple(counts)
        self.action_space = spaces.Discrete(self.counts[0], start=2) if len(self.counts) == 1 else spaces.MultiDiscrete(self.counts)

    def _observe(self, over=False):
        self.masks = [self.np_random.permutation(np.arange(count) < self.np_random.integers(1, count + 1)) * (not over) for count in self.counts]
        return np.zeros(1, np.float32), {"action_mask": tuple(self.masks) if len(self.counts) > 1 else self.masks[0].astype(np.int8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 10
        return self._observe()

    def step(self, action):
        pulled = np.ravel(action - self.action_space.start)
        assert all(mask[arm] for mask, arm in zip(self.masks, pulled, strict=True)), "a forbidden arm was pulled"
        reward = -float(sum(np.flatnonzero(mask).max() - arm for mask, arm in zip(self.masks, pulled, strict=True)))
        self.left -= 1
        observation, info = self._observe(over=not self.left)
        return observation, reward, not self.left, False, info


class Cue(gymnasium.Env):
    """Say at the last of `length` steps what was shown at the first, 0 or 1, for a reward of 1: whoever forgets gets ½. What is said before doesn't count."""

    def __init__(self, length: int = 4) -> None:
        self.observation_space, self.action_space, self.length = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(2), length

    def _observation(self):
        return np.array([0.0 if self.count else 2 * self.cue - 1, self.count == self.length - 1], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.count = int(self.np_random.integers(2)), 0
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        over = self.count == self.length
        return self._observation(), float(over and action == self.cue), over, False, {}


class Counting(gymnasium.Env):
    """Observes the number of steps taken in the episode, reward 1 each step, and ends as told after `length` steps."""

    def __init__(self, length: int = 3, terminates: bool = False) -> None:
        self.observation_space = spaces.Box(0.0, 100.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.length, self.terminates = length, terminates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observation(), {}

    def _observation(self):
        return np.array([self.count], np.float32)

    def step(self, action):
        self.count += 1
        over = self.count >= self.length
        return self._observation(), 1.0, over and self.terminates, over and not self.terminates, {}


class Blind(Counting):
    """Counting whose observation never changes: with truncation its value is 1/(1−γ), with termination less."""

    def _observation(self):
        return np.ones(1, np.float32)


class Unrepeatable(Counting):
    """Not a function of its seed: it can't be continued exactly."""

    def _observation(self):
        return np.random.default_rng().random(1).astype(np.float32)


class Nested(Counting):
    """Counting whose observation is said many times over, in every kind of space."""

    def __init__(self, length: int = 3, terminates: bool = False, order: str = "dict") -> None:
        super().__init__(length, terminates)
        inner = spaces.Tuple([spaces.Discrete(200, start=-1), spaces.MultiDiscrete([200, 3]), spaces.Box(0, 255, (2, 2), np.uint8)])
        self.order, each = order, {"number": spaces.Box(0.0, 100.0, (1,), np.float32), "bits": spaces.MultiBinary(8), "inner": inner}
        self.observation_space = spaces.Dict(each) if order == "dict" else spaces.Tuple(list(each.values()))

    def _observation(self):
        count = self.count
        inner = (count - 1, np.array([count, count % 3]), np.full((2, 2), count, np.uint8))
        each = {"number": np.array([count], np.float32), "bits": np.array([count >> bit & 1 for bit in range(8)], np.int8), "inner": inner}
        return each if self.order == "dict" else tuple(each.values())


class Picture(Counting):
    """Counting in a picture of two channels, as MinAtar's are."""

    def __init__(self, length: int = 3, terminates: bool = False) -> None:
        super().__init__(length, terminates)
        self.observation_space = spaces.Box(0, 1, (10, 10, 2), np.bool_)

    def _observation(self):
        return np.arange(200).reshape(10, 10, 2) == self.count


class Chain(gymnasium.Env):
    """Walk right along `length` fields for a reward of 1 at the end, or left from the first for 0.1: ends at both; cut after 50 steps.

    Q*(s, right) = γ^(length − 1 − s); `P` lists all transitions as FrozenLake's does.
    """

    def __init__(self, length: int = 6) -> None:
        self.observation_space, self.action_space = spaces.Discrete(length), spaces.Discrete(2)
        self.P = {field: {action: [self._outcome(field, action)] for action in range(2)} for field in range(length)}

    def _outcome(self, field, action):
        last = int(self.observation_space.n) - 1
        if (field, action) == (0, 0):
            return 1.0, 0, 0.1, True
        return (1.0, last, 1.0, True) if (field, action) == (last, 1) else (1.0, field + 2 * action - 1, 0.0, False)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.field = int(self.np_random.integers(self.observation_space.n))
        return self.field, {}

    def step(self, action):
        ((_, self.field, reward, terminated),) = self.P[self.field][int(action)]
        return self.field, reward, terminated, False, {}


class Regulator(gymnasium.Env):
    """Bring x to 0: x ← x + u/2 for −(x² + u²/10) a step, cut after five steps. Linear feedback u = −`gain(γ)`·x is the best."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32), spaces.Box(-2.0, 2.0, (1,), np.float32)

    @staticmethod
    def gain(discount):
        """That of the discounted Riccati equation, by iteration."""
        cost = 1.0
        for _ in range(1000):
            gain = discount * 0.5 * cost / (0.1 + discount * 0.25 * cost)
            cost = 1 + 0.1 * gain**2 + discount * cost * (1 - 0.5 * gain) ** 2
        return gain

    def _observation(self):
        return np.array([self.x], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return self._observation(), {}

    def step(self, action):
        u = float(action[0])
        reward = -(self.x**2 + u**2 / 10)
        self.x += u / 2
        return self._observation(), reward, False, False, {}


class Bandit(gymnasium.Env):
    """Three arms that pay 0, ½ and 1: a step is an episode."""

    pays = (0.0, 0.5, 1.0)

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(1.0, 1.0, (1,), np.float32), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), self.pays[int(action)], True, False, {}


class Failing(Counting):
    """Counting that raises at its `last`-th step, and when it is reset with the seed `cursed`."""

    def __init__(self, last: int = 9999, cursed: int = -1) -> None:
        super().__init__(5)
        self.left, self.cursed = last, cursed

    def reset(self, *, seed=None, options=None):
        if seed == self.cursed:
            raise RuntimeError("the reset\nwent wrong")
        return super().reset(seed=seed)

    def step(self, action):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("the step\nwent wrong")
        return super().step(action)
class Peak(gymnasium.Env):
    """Five steps whose return says how near x is to 0.3, whatever is done: −5 (x − 0.3)²."""

    def __init__(self, x: float = 0.0) -> None:
        self.observation_space, self.action_space, self.x = spaces.Box(0.0, 1.0, (1,), np.float32), spaces.Discrete(2), x

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), -((self.x - 0.3) ** 2), False, False, {}


class Broken(gymnasium.Env):
    """Can't be made."""

    def __init__(self) -> None:
        raise RuntimeError("no licence\nfor this")


for toy in (Identity, Match, Faint, Arms, Cue, Counting, Blind, Unrepeatable, Nested, Picture, Chain, Regulator, Bandit, Peak, Failing, Broken):
    limit = {Identity: 10, Match: 10, Faint: 10, Chain: 50, Regulator: 5, Peak: 5}.get(toy)
    gymnasium.register(f"{toy.__name__}-v0", entry_point=f"{__name__}:{toy.__name__}", max_episode_steps=limit)
