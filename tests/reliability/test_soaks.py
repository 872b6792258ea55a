"""The soak says that a process grows when it does, and not when its readings only vary."""

import random

from reliability.soaks import Readings, find_growth, find_slope


def read(memory_per_hour: float, descriptors_more: int, seed: int) -> Readings:
    dice = random.Random(seed)
    readings = Readings()
    for number in range(120):
        at = number * 5.0
        values = {"memory": 90 + memory_per_hour * at / 3600 + dice.gauss(0, 0.5), "threads": 9, "tasks": 12 + dice.randint(0, 2)}
        readings.add(at, values | {"descriptors": 40 + dice.randint(-1, 1) + descriptors_more * (number // 80)})
    return readings


def test_a_slope_lies_within_its_interval_and_one_far_reading_does_not_bend_it() -> None:
    at = [float(second) for second in range(60)]
    values = [second / 3600 * 7 for second in at]
    values[30] = 1_000.0
    slope, low, high = find_slope(at, values)
    assert low <= slope <= high and abs(slope - 7) < 0.01


def test_growth_is_found_and_noise_is_none() -> None:
    assert find_growth({"steady": read(0, 0, seed=1)}) == []
    arena = read(0, 0, seed=4)
    arena.values["memory"] = [90 + number / 150 for number in range(120)]
    assert find_growth({"an arena is filled": arena}) == []
    (memory,) = find_growth({"leak": read(60, 0, seed=2)})
    assert "memory grows" in memory
    (descriptors,) = find_growth({"sockets": read(0, 20, seed=3)})
    assert "20 more descriptors" in descriptors
