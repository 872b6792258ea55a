"""History of one seed: epochs of a gateway, their faults, rest, and the final check.

A history has two parts. In the first anything may happen, several times over: kills at any call, power cuts, full and failing
disks, lost and repeated messages, a control plane that dies before its commit, stops, roll-overs with two live gateways,
clocks that jump. In the second everything works again, one last gateway starts and ships what is there; then nothing is
left to come, and what control has must be exactly what the truth says.
"""

import math
import traceback
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.link import samples
from tests.simulation.disks import Directory, File, Files, SimulatedDisk
from tests.simulation.expectations import DAMAGE, check_history
from tests.simulation.limits import draw_limits
from tests.simulation.machine import Killed, NoRest, Process, World
from tests.simulation.planes import SPOOL, Control, Gateway, Ledger, Network, shipper_options, spool_options
from tests.simulation.traffic import Traffic, budget_of, draw_credit
from tollway.gateway import budgets
from tollway.link import recovery, shipper, spool
from tollway.link.epochs import EpochFiles, list_epochs
from tollway.link.recovery import Recovered

PREPAID = 0
"""Seeds of histories with credit in place of a budget, modulo 5: none that was written down before there was any."""

REST_SECONDS = 90.0
"""Virtual; control's longest silence towards a request is 15 s."""


OUTPUT_TOKENS_FIRST = 16
"""Output that a stream reserves at first: streams here are short, and should reserve more several times."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a seed. `failures` is empty if every promise was kept."""

    seed: int
    failures: tuple[str, ...]
    trace: tuple[str, ...]
    virtual_seconds: float
    steps: int
    kills: int
    power_cuts: int
    faults: int
    admitted: int
    events: int
    digest: int


class History:
    """The parts of one world, and its course."""

    def __init__(self, seed: int, ledger: Ledger) -> None:
        self.seed = seed
        self.world = world = World(seed)
        chance = world.chance
        world.preemptive = chance.random() < 0.15
        self.kernel = chance.random() < 0.5
        self.files = Files(world)
        self.files.reorders = chance.random() < 0.4
        self.network = Network(world)
        self.control = Control(world, ledger)
        limit_pico = Random(seed).choice((0, 0, 4 * 10**8, 10**9, 4 * 10**9))  # of its own, so that it changes no other draw
        if limit_pico and seed % 5 == PREPAID:
            self.control.add_credit(samples.ORGANIZATION, draw_credit(Random(seed), limit_pico), world.true_clock())
            self.control.add_topups(samples.ORGANIZATION, limit_pico // 8, limit_pico * 3 // 4, world.true_clock())
        elif limit_pico:
            self.control.add_budget(budget_of(limit_pico))
        self.limits = draw_limits(seed, world, samples.ORGANIZATION, samples.PROJECT)
        self.options = spool_options(chance)
        self.shipper_options = shipper_options(chance)
        self.traffic = Traffic(
            world,
            requests_max=chance.choice((2, 6, 14)),
            pause_seconds=chance.choice((0.0005, 0.004, 0.03)),
            think_seconds=chance.choice((0.0005, 0.005, 0.05)),
            stream_share=chance.choice((0.2, 0.8, 0.8)),
            checkpoints_max=chance.choice((1, 1, 25)),
        )
        self.alarms: list[tuple[str, dict[str, object]]] = []
        self.tainted: dict[int, str] = {}
        """Epochs whose bytes were changed behind everybody's back, and how."""
        self.power_cuts = 0
        self.gateways: list[Gateway] = []
        self.straight: dict[int, dict[str, bytes]] = {}
        """End state of an undisturbed recovery of an epoch; kept as long as nothing but recovery touches it."""

    # ---- The course ----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Everything, in its order."""
        world = self.world
        try:
            for life in range(world.chance.choice((1, 2, 2, 3, 5))):
                self._befall()
                if life and world.chance.random() < 0.5:
                    self._stumble(f"gateway-{life}")
                self._live(f"gateway-{life}")
                if world.failures:
                    break
            if not world.failures:
                self._rest()
            if not world.failures:
                check_history(self)
        except NoRest as error:
            world.fail(str(error))
        except Exception:
            world.fail(traceback.format_exc(limit=-6))
        kills = world.kills
        for gateway in self.gateways:
            gateway.process.kill("with its world")
        return Outcome(
            seed=self.seed,
            failures=tuple(world.failures),
            trace=tuple(world.trace),
            virtual_seconds=world.now,
            steps=world.steps,
            kills=kills,
            power_cuts=self.power_cuts,
            faults=world.faults,
            admitted=sum(truth.admitted for truth in self.traffic.truths.values()),
            events=self.control.taken,
            digest=world.digest,
        )

    def _befall(self) -> None:
        """Draw the faults of the time that comes."""
        chance, files, network, control = self.world.chance, self.files, self.network, self.control
        network.lost_rate = chance.choice((0.0, 0.0, 0.05, 0.3))
        network.repeat_rate = chance.choice((0.0, 0.0, 0.3))
        control.error_rate = chance.choice((0.0, 0.0, 0.1, 0.5))
        control.is_up = chance.random() < 0.8
        files.short_rate = chance.choice((0.0, 0.0, 0.1))
        files.writeback_rate = chance.choice((0.0, 0.01, 0.05))
        files.error_rate = 0.0
        files.is_full = False
        files.free_bytes = chance.choice((1 << 40, 1 << 40, 0))

    def _live(self, name: str) -> None:
        """One gateway, until it ends one way or another; perhaps with a second one that relieves it."""
        world, chance = self.world, self.world.chance
        gateway = self._start(name)
        ending = chance.choice(("kill", "kill", "edge", "edge", "power", "power", "stop", "relief", "broken", "full"))
        if ending in ("kill", "power"):
            gateway.process.fuse = int(math.exp(chance.uniform(0, math.log(3_000))))
        elif ending == "edge":
            gateway.process.lives_on_edges = True
            if chance.random() < 0.6:
                ending = "power"
        if chance.random() < 0.2:
            world.after(chance.uniform(0, 0.3), lambda: self._skew(gateway))
        if ending == "broken":
            world.after(chance.uniform(0, 0.3), self._break_disk)
        if ending == "full" or chance.random() < 0.1:
            world.after(chance.uniform(0, 0.2), lambda: self._fill(True))
            world.after(chance.uniform(0.2, 1.5), lambda: self._fill(False))
        if chance.random() < 0.3:
            world.after(chance.uniform(0, 0.5), self._turn_control)
        if self.limits is not None:
            self.limits.befall()
        world.run(lambda: gateway.has_ended, chance.uniform(0.05, 1.2))
        if ending == "power":
            self._cut_power()
        elif ending == "relief" and gateway.has_begun and not gateway.has_ended:
            self._relieve(gateway, name)
        if not gateway.has_ended and chance.random() < 0.8:
            if not gateway.has_begun:
                gateway.process.kill("before it began")
            else:
                gateway.stop()
                world.run(lambda: gateway.has_ended, 40.0)
        if not gateway.has_ended:
            gateway.process.kill("by the supervisor")
        self.files.error_rate = 0.0
        self._after_death()
        if chance.random() < 0.06:
            self._flip()

    def _stumble(self, name: str) -> None:
        """A start that dies before it can serve, once or several times: recovery killed in the middle."""
        world, chance = self.world, self.world.chance
        for attempt in range(chance.choice((1, 1, 2, 4))):
            gateway = self._start(f"{name}-stumble-{attempt}")
            gateway.process.fuse = chance.randint(0, 70)
            world.run(lambda gateway=gateway: gateway.has_ended or gateway.has_begun, 5.0)  # type: ignore[misc]
            if chance.random() < 0.3:
                self._cut_power()
            gateway.process.kill("before it serves")

    def _start(self, name: str, *, serves: bool = True) -> Gateway:
        gateway = Gateway(self, name, serves=serves)
        self.gateways.append(gateway)
        gateway.start()
        return gateway

    def _relieve(self, old: Gateway, name: str) -> None:
        """A new process starts beside the old one, which then drains."""
        world, chance = self.world, self.world.chance
        new = self._start(name + "-relief")
        if chance.random() < 0.3:
            new.process.fuse = chance.randint(0, 500)
        world.run(lambda: new.has_begun or new.has_ended or old.has_ended, 5.0)
        world.run(lambda: False, chance.uniform(0, 0.2))
        if not old.has_ended:
            if chance.random() < 0.3:
                old.process.fuse = chance.randint(0, 500)
            old.stop()
            world.run(lambda: old.has_ended, 40.0)
        world.run(lambda: new.has_ended, chance.uniform(0, 0.5))
        if chance.random() < 0.3:
            self._cut_power()
        elif new.has_begun and not new.has_ended and chance.random() < 0.5:
            new.stop()
            world.run(lambda: new.has_ended, 40.0)
        if not new.has_ended:
            new.process.kill("by the supervisor")

    # ---- What befalls ---------------------------------------------------------------------------------------------------

    def _skew(self, gateway: Gateway) -> None:
        gateway.process.skew_seconds += self.world.chance.choice((-7_200.0, -1.0, 1.0, 7_200.0))
        self.world.faults += 1
        self.world.note(f"{gateway.process.name}'s clock jumps")

    def _break_disk(self) -> None:
        self.files.error_rate = self.world.chance.choice((0.01, 0.1))
        self.world.note("the disk fails")

    def _fill(self, is_full: bool) -> None:
        self.files.is_full = is_full
        self.world.note("the disk is full" if is_full else "the disk has space again")

    def _turn_control(self) -> None:
        self.control.is_up = not self.control.is_up
        self.world.note("control is up" if self.control.is_up else "control is down")

    def _cut_power(self) -> None:
        """Every process of this machine dies, and what was not synced is uncertain."""
        world = self.world
        world.note("the power is cut")
        self.power_cuts += 1
        for gateway in self.gateways:
            if not gateway.has_ended or gateway.process.alive:
                gateway.process.kill("for lack of power")
        spool_directory = self.files.find(SPOOL)
        epochs = spool_directory.names if isinstance(spool_directory, Directory) else {}
        for truth in self.traffic.truths.values():
            directory = epochs.get(f"epoch-{truth.epoch}")
            is_closed = directory is not None and "closed" in directory.durable and f"epoch-{truth.epoch}" in spool_directory.durable
            if not truth.durable and not is_closed and directory is not None:
                truth.power_cut = True
        for name, directory in epochs.items():
            if name.startswith("epoch-") and any(file.lost for file in directory.names.values() if isinstance(file, File)):
                self.tainted[int(name[6:])] = "a sync failed, and then the power"
        self.straight.clear()
        self.files.cut_power()

    def _flip(self) -> None:
        """A bit of a segment changes on the medium, unseen."""
        chance = self.world.chance
        spool_directory = self.files.find(SPOOL)
        if not isinstance(spool_directory, Directory):
            return
        found = [
            (directory_name, name, file)
            for directory_name, directory in spool_directory.names.items()
            if isinstance(directory, Directory)
            for name, file in directory.names.items()
            if name.endswith(".seg") and any(file.data)
        ]
        if not found:
            return
        directory_name, name, file = chance.choice(found)
        end = len(file.data.rstrip(b"\0"))
        at = chance.randrange(end)
        bit = 1 << chance.randrange(8)
        for content in (file.data, file.durable):
            if at < len(content):
                content[at] ^= bit
        number = int(directory_name[6:])
        is_closed = "closed" in spool_directory.names[directory_name].names
        # A wrong last record of a life that nobody has closed yet looks like one that was never whole.
        self.tainted[number] = "torn" if not is_closed else "flipped"
        self.straight.pop(number, None)
        self.world.faults += 1
        self.world.note(f"a bit flips in {directory_name}/{name} at {at} of {end}")

    def _after_death(self) -> None:
        """Sometimes, look what an undisturbed recovery would make of what is on disk now, twice."""
        if self.world.chance.random() >= 0.3 or self.files.find(SPOOL / "node.json") is None:
            return
        copy = self.files.clone()
        process = Process(self.world, "onlooker")
        disk = SimulatedDisk(copy, process, kernel=False)
        preemptive, self.world.preemptive = self.world.preemptive, False
        for epoch in list_epochs(SPOOL, disk):  # type: ignore[arg-type]
            if epoch.is_closed() or epoch.is_damaged() or epoch.number in self.tainted:
                continue
            if recovery.recover(epoch, alarm=self._unexpected) is not Recovered.CLOSED:
                continue
            if not disk.exists(epoch.directory):
                self.straight[epoch.number] = {}
                continue
            once = _content(copy, epoch)
            disk.unlink(epoch.directory / "closed")
            recovery.recover(epoch, alarm=self._unexpected)
            if _content(copy, epoch) != once:
                self.world.fail(f"recovering epoch {epoch.number} twice is not the same as once")
            self.straight[epoch.number] = once
        self.world.preemptive = preemptive

    def _unexpected(self, event: str, fields: dict[str, object]) -> None:
        self.world.fail(f"alarm without cause: {event} {fields}")

    def compare_with_straight(self) -> None:
        """Epochs that were recovered since, in whatever way, end in the bytes of an undisturbed recovery."""
        for number, expected in self.straight.items():
            epoch = EpochFiles(SPOOL / f"epoch-{number}", number)  # type: ignore[arg-type]
            directory = self.files.find(epoch.directory)
            if number in self.tainted or directory is None or "closed" not in directory.names or "shipped" in directory.names:
                continue  # gone, or housekeeping may have begun
            if _content(self.files, epoch) != expected:
                self.world.fail(f"epoch {number} was not recovered to the bytes of an undisturbed recovery")

    # ---- Rest -----------------------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Everything works again; one last gateway ships what there is."""
        world = self.world
        self.network.lost_rate = self.network.repeat_rate = self.control.error_rate = 0.0
        self.files.error_rate = self.files.short_rate = 0.0
        self.files.is_full = False
        self.control.is_up = True
        if self.limits is not None:
            self.limits.mend()
        world.note("everything works again")
        world.run(lambda: False, 16.0)  # what was on its way arrives
        self.files.error_rate = 0.0
        self._fill(False)
        self.control.is_up = True
        last = self._start("gateway-last", serves=False)
        if not world.run(lambda: last.has_begun or last.has_ended, REST_SECONDS) or not last.has_begun:
            world.fail("the last gateway does not start")
            return
        if not world.run(lambda: self._all_shipped(last), REST_SECONDS):
            world.fail(f"not everything arrives at control: {self._unshipped(last)}")
            return
        self.compare_with_straight()
        last.stop()
        if not world.run(lambda: last.has_ended, REST_SECONDS) or not last.is_complete:
            world.fail("the last gateway does not end in good order")

    def _unshipped(self, last: Gateway) -> list[str]:
        directory = self.files.find(SPOOL)
        left = []
        for name, epoch in directory.names.items():
            if not name.startswith("epoch-") or name == last.spool.epoch.directory.name or "shipped" in epoch.names:
                continue
            number = int(name[6:])
            is_reported = number in self.tainted and any(event in DAMAGE and fields["epoch"] == number for event, fields in self.alarms)
            if not is_reported and any(file.endswith(".seg") for file in epoch.names):
                left.append(name)
        return left

    def _all_shipped(self, last: Gateway) -> bool:
        return self.world.steps % 16 == 0 and last.shipper is not None and last.shipper.metrics.batches >= 0 and not self._unshipped(last)


def _content(files: Files, epoch: EpochFiles) -> dict[str, bytes]:
    """Every segment of an epoch, and where it ends."""
    directory: Any = files.find(epoch.directory)
    return {name: bytes(file.data).rstrip(b"\0") for name, file in directory.names.items() if name.endswith(".seg") or name == "closed"}


def run_seed(seed: int, ledger: Ledger) -> Outcome:
    """Run one history, from nothing to the final check."""
    pace = (shipper.PAUSE_SECONDS, shipper.CARE_SECONDS, shipper.BATCH_BYTES, spool.RETRY_SECONDS)
    output_tokens_first, budgets.OUTPUT_TOKENS_FIRST = budgets.OUTPUT_TOKENS_FIRST, OUTPUT_TOKENS_FIRST
    history = History(seed, ledger)
    chance = history.world.chance
    # Faster than life, so that a second holds much; and batches as small as a frame allows.
    shipper.PAUSE_SECONDS, shipper.CARE_SECONDS = chance.choice((0.1, 0.25)), chance.choice((0.2, 1.0))
    shipper.BATCH_BYTES, spool.RETRY_SECONDS = 66_000, 0.05
    try:
        return history.run()
    except Killed:  # pragma: no cover - a death that nobody claims is a mistake of the simulation
        raise AssertionError(f"seed {seed}: a death reached the outside") from None
    finally:
        shipper.PAUSE_SECONDS, shipper.CARE_SECONDS, shipper.BATCH_BYTES, spool.RETRY_SECONDS = pace
        budgets.OUTPUT_TOKENS_FIRST = output_tokens_first
