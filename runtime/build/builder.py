"""A build: the stages that a target needs, instruction by instruction, each looked up before it is done.

Every instruction that touches files makes one layer: on a union mount of the layers so far, or in a
container of its own, and the layer is what is then in the upper directory. What it made is kept under a
key, the sum of all that it depends on: the layers below, the words, the variables it sees, the content it
copies. So the same step is never done twice, whatever else in the Dockerfile was changed; and since a
step's time is kept with it, a build of nothing new gives the very same image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from runtime.build import commands, run_mounts
from runtime.build.contexts import Context
from runtime.build.copies import Copies, find_files, read_words
from runtime.build.copying import Look, Target
from runtime.build.dockerfile import DockerfileError, Instruction, parse, parse_one
from runtime.build.request import PREDEFINED, BuildRequest, Report
from runtime.build.settings import Settings
from runtime.build.stages import SCRATCH, Plan, Stage, declare, plan
from runtime.build.state import State, as_config, from_image, from_scratch
from runtime.build.trees import Tree
from runtime.containers import rootfs, users
from runtime.errors import NotFound, RuntimeFailure
from runtime.images.archive import SourceImage
from runtime.images.making import OwnLayer, stage_image, stage_upper, stored_layers, timestamp
from runtime.images.progress import Silent
from runtime.images.steps import Step
from runtime.images.store import Image, ImageStore, Intake
from runtime.images.tarwriter import Clamp
from runtime.root import Root

#: Of the way layers are made: another number, and nothing that was made before is taken.
_VERSION = 1

FindImage = Callable[[str], Image]


def build(
    root: Root,
    store: ImageStore,
    request: BuildRequest,
    open_context: Callable[[Path], Context],
    report: Report,
    find_image: FindImage,
) -> Image:
    """Build an image and name it; `open_context` is given a directory for what it has to unpack.

    `find_image` gets the images that stages begin with, by name; it may pull them.

    Raises DockerfileError at what the Dockerfile cannot say, and RuntimeFailure, with a command's exit
    code, when one fails. Nothing is left then but the steps before.
    """
    commands.remove_dead(root)
    with ExitStack() as stack:
        work = stack.enter_context(store.working())
        stack.callback(store.steps.unpin, work.name)
        builder = _Builder(root, store, request, report, work, stack, find_image)
        return builder.run(open_context(_new(work / "context")))


class _Builder:
    def __init__(
        self,
        root: Root,
        store: ImageStore,
        request: BuildRequest,
        report: Report,
        work: Path,
        stack: ExitStack,
        find_image: FindImage,
    ) -> None:
        self._root = root
        self._store = store
        self._request = request
        self._report = report
        self._work = work
        self._stack = stack
        self._find_image = find_image
        self._epoch = request.epoch
        self._clamp = Clamp(self._epoch)
        self._context: Tree
        self._plan: Plan
        self._states: dict[int, State] = {}
        self._trees: dict[tuple[str, ...], Tree] = {}
        self._images: dict[str, Image] = {}
        self._places = 0
        self._number = 0
        self._total = 0

    def run(self, context: Context) -> Image:
        dockerfile = parse(context.dockerfile, context.name)
        self._context = context.tree
        self._plan = plan(dockerfile, self._request.arguments)
        target = self._plan.target(self._request.target)
        needed = self._plan.needed(target)
        for stage in self._plan.stages:
            for instruction in stage.instructions:
                self._check(instruction)
        self._check_arguments(dockerfile.instructions)
        self._total = sum(1 + len(stage.instructions) for stage in needed)
        for stage in needed:
            self._states[stage.number] = self._stage(stage)
        return self._finish(self._states[target.number])

    def _check(self, instruction: Instruction) -> None:
        """What can be known to be wrong before anything is done."""
        if instruction.name == "RUN":
            if instruction.flag("security") not in ("", "sandbox"):
                raise instruction.error("--security=insecure is not given to builds", "insecure")
            commands.network_of(instruction, self._request.network)
            for text in instruction.all("mount"):
                if "$" not in text:
                    run_mounts.parse(instruction, text, Settings({"config": {"WorkingDir": "/any"}}))

    def _check_arguments(self, instructions: Sequence[Instruction]) -> None:
        declared = {
            word.partition("=")[0] for one in instructions if one.name == "ARG" for word in one.text.split()
        }
        unused = sorted(set(self._request.arguments) - declared - PREDEFINED - {"SOURCE_DATE_EPOCH"})
        if unused:
            self._report.note(f"one or more build-args {unused} were not consumed")

    # Stages

    def _stage(self, stage: Stage) -> State:
        self._step_begins(stage.begin)
        state = self._base(stage)
        self._report.stepped(state.diff_ids[-1] if state.diff_ids else "")
        triggers = state.settings.config.pop("OnBuild", None) or []
        self._total += len(triggers)
        for text in triggers:
            self._instruction(stage, state, parse_one(text, f"ONBUILD of {stage.title}"))
        for instruction in stage.instructions:
            self._instruction(stage, state, instruction)
        return state

    def _base(self, stage: Stage) -> State:
        if isinstance(stage.base, Stage):
            return self._states[stage.base.number].continued()
        if stage.base == SCRATCH:
            return from_scratch()
        image = self._image(stage.base, stage.begin)
        return from_image(image, self._store.manifest_of(image).layers)

    def _image(self, name: str, instruction: Instruction) -> Image:
        """The image `name`, whose layers stay as long as the build needs them."""
        if name not in self._images:
            try:
                image = self._find_image(name)
            except NotFound as error:
                raise instruction.error(f"{error}", name) from error
            blobs = self._store.manifest_of(image).layers
            self._store.pin(Step(timestamp(), image.config.diff_ids, blobs), self._work)
            self._images[name] = image
        return self._images[name]

    def _step_begins(self, instruction: Instruction) -> None:
        self._number += 1
        text = re.sub(r"\s*\n\s*", " ", instruction.original.strip())
        self._report.step(self._number, self._total, text)

    def _instruction(self, stage: Stage, state: State, instruction: Instruction) -> None:
        self._step_begins(instruction)
        if instruction.name == "ARG":
            self._argument(state, instruction)
        elif instruction.name == "RUN":
            self._run(stage, state, instruction)
        elif instruction.name in ("COPY", "ADD"):
            self._copy(stage, state, instruction)
        else:
            before = json.dumps(state.document, sort_keys=True)
            words = state.settings.apply(instruction)
            if instruction.name == "WORKDIR":
                self._working_dir(state, words)
            else:
                key = _sum("SET", self._epoch, before, state.diff_ids, words)
                state.history(self._looked_up(key, state, None), words, empty=True)
        self._report.stepped(state.diff_ids[-1] if state.diff_ids else "")

    def _argument(self, state: State, instruction: Instruction) -> None:
        known = state.settings
        names = declare(
            instruction,
            known.arguments,
            self._request.arguments,
            self._plan.arguments,
            known.environment,
        )
        state.declared += [name for name in names if name not in state.declared]
        words = " ".join(
            f"{name}={known.arguments[name]}" if name in known.arguments else name for name in names
        )
        key = _sum("ARG", self._epoch, state.diff_ids, state.document, words)
        state.history(self._looked_up(key, state, None), f"ARG {words}", empty=True)

    # Steps

    def _looked_up(self, key: str, state: State, make: Callable[[Path], OwnLayer | None] | None) -> Step:
        """The step of that key, made if it is not there yet; `make` gives its layer, if it has one.

        The state's layers are then those of the step.
        """
        step = None if self._request.no_cache else self._store.use_step(key, self._work)
        if step is not None:
            if make is not None:
                self._report.cached()
            state.diff_ids, state.blobs = step.diff_ids, step.blobs
            return step
        place = self._new_place()
        layer = make(place) if make is not None else None
        own_id, own_blob = ((layer.diff_id,), (layer.descriptor,)) if layer else ((), ())
        step = Step(
            timestamp(self._epoch),
            (*state.diff_ids, *own_id),
            (*state.blobs, *own_blob),
        )
        step = self._store.keep_step(key, step, layer, self._work, self._request.no_cache)
        shutil.rmtree(place, ignore_errors=True)
        state.diff_ids, state.blobs = step.diff_ids, step.blobs
        return step

    def _new_place(self) -> Path:
        self._places += 1
        return _new(self._work / f"place-{self._places}")

    def _pack(self, upper: Path, place: Path) -> OwnLayer:
        return stage_upper(upper, place, self._clamp, self._request.compression)

    @contextmanager
    def _mounted(self, state: State, place: Path) -> Iterator[Path]:
        """The stage's tree, to be changed; the changes are in `place`/upper when the block has ended."""
        for part in ("upper", "work", "merged", "empty"):
            _new(place / part)
        # The mode of an image's root.
        (place / "upper").chmod(0o755)
        lower = [str(path) for path in reversed(self._as_image(state).trees)] or [str(place / "empty")]
        rootfs.mount(lower, place / "upper", place / "work", place / "merged", volatile=True)
        try:
            yield place / "merged"
        finally:
            rootfs.unmount(place / "merged")

    def _as_image(self, state: State) -> Image:
        layers = self._store.layers_of(state.diff_ids)
        return Image(f"sha256:{'0' * 64}", (), as_config(state.finished()), layers, ())

    def _tree(self, name: str, stage: Stage, instruction: Instruction) -> Tree:
        """Where files come from: a stage or an image by name, the context without one."""
        if not name:
            return self._context
        return self._tree_of(self._origin(name, stage, instruction))

    def _origin(self, name: str, stage: Stage, instruction: Instruction) -> tuple[str, ...]:
        """The layers of a stage or an image."""
        found = self._plan.find(name, stage.number)
        if found is not None:
            return self._states[found.number].diff_ids
        if name.lower() in (stage.name, *(later.name for later in self._plan.stages[stage.number :])):
            raise instruction.error(f"the stage {name!r} comes later", name)
        return self._image(name, instruction).config.diff_ids

    def _tree_of(self, diff_ids: tuple[str, ...]) -> Tree:
        if diff_ids not in self._trees:
            paths = list(dict.fromkeys(layer.path for layer in reversed(self._store.layers_of(diff_ids))))
            if len(paths) == 1:
                self._trees[diff_ids] = Tree(paths[0])
            else:
                target = _new(self._new_place() / "merged")
                rootfs.mount_read_only(paths or [_new(self._new_place() / "empty")], target)
                self._stack.callback(rootfs.unmount, target)
                self._trees[diff_ids] = Tree(target)
        return self._trees[diff_ids]

    # Instructions that touch files

    def _working_dir(self, state: State, words: str) -> None:
        path, user = state.settings.working_dir, str(state.settings.config.get("User") or "")

        def make(place: Path) -> OwnLayer | None:
            with self._mounted(state, place) as merged:
                target = Target(merged)
                try:
                    if not target.is_directory(path):
                        owner = _owner(merged, user) if user else (0, 0)
                        os.close(target.make_directories(path, Look(owner, time_ns=self._now())))
                finally:
                    target.close()
            return self._pack(place / "upper", place) if any((place / "upper").iterdir()) else None

        before = state.diff_ids
        key = _sum("WORKDIR", self._epoch, before, path, user)
        step = self._looked_up(key, state, make)
        state.history(step, words, empty=state.diff_ids == before)

    def _now(self) -> int | None:
        return None if self._epoch is None else self._epoch * 10**9

    def _copy(self, stage: Stage, state: State, instruction: Instruction) -> None:
        name = instruction.flag("from")
        if name and name.lower() == SCRATCH:
            raise instruction.error("nothing can be copied from scratch", name)
        origin = self._origin(name, stage, instruction) if name else ()

        words = read_words(instruction, state.settings)

        def find() -> Copies:
            return find_files(
                words,
                state.settings,
                lambda: self._tree(name, stage, instruction),
                from_context=not name,
                place=self._new_place(),
            )

        def make(place: Path) -> OwnLayer:
            found = copies or find()
            with self._mounted(state, place) as merged:
                owner = _chown(instruction, merged, words.chown) if words.chown else None
                if owner is None and not name:
                    owner = (0, 0)
                found.copy(merged, Look(owner, words.chmod), self._new_place())
            return self._pack(place / "upper", place)

        # Of what is taken from layers, the layers' names say as much as its content, and no one has to look.
        copies = None if name and not instruction.heredocs else find()
        content = copies.digests() if copies else [origin, words.sources]
        flags = [words.chown, words.chmod, words.exclude, words.destination, words.parents]
        key = _sum(instruction.name, self._epoch, state.diff_ids, content, flags)
        step = self._looked_up(key, state, make)
        shown = f"--from={name} " if name else ""
        state.history(step, f"{instruction.name} {shown}{' '.join(words.sources)} {words.destination}", False)

    def _run(self, stage: Stage, state: State, instruction: Instruction) -> None:
        settings = state.settings
        command = commands.command_of(instruction, settings)
        network = commands.network_of(instruction, self._request.network)
        mounts = [run_mounts.parse(instruction, text, settings) for text in instruction.all("mount")]
        arguments = state.run_arguments
        hidden = {
            name: value
            for name, value in self._request.arguments.items()
            if name in PREDEFINED and name not in settings.environment
        }
        if self._epoch is not None and "SOURCE_DATE_EPOCH" not in settings.environment:
            hidden["SOURCE_DATE_EPOCH"] = str(self._epoch)

        def make(place: Path) -> OwnLayer:
            layers: list[OwnLayer] = []
            with ExitStack() as stack:
                preparer = run_mounts.Preparer(
                    _new(place / "mounts"),
                    lambda: Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_memory()))),
                    self._root.build_caches,
                    self._request.secrets,
                    lambda name: self._tree(name, stage, instruction),
                    stack,
                )
                prepared = preparer.prepare(instruction, mounts)
                env = [f"{name}={value}" for name, value in {**hidden, **arguments}.items()]
                where = commands.Place(self._root, self._work, self._request, self._report)
                self._command(
                    instruction,
                    command,
                    lambda: where.run(
                        self._as_image(state),
                        command,
                        env,
                        network,
                        prepared,
                        lambda upper: layers.append(self._pack(upper, place)),
                    ),
                )
            return layers[0]

        depends: list[Any] = [command.args, command.scripts, network, settings.working_dir]
        depends += [settings.config.get("User"), sorted(settings.environment.items())]
        depends += [sorted(arguments.items()), self._request.extra_hosts]
        depends += [[str(mount), self._mount_content(mount, stage, instruction)] for mount in mounts]
        step = self._looked_up(_sum("RUN", self._epoch, state.diff_ids, depends), state, make)
        given = [f"{name}={value}" for name, value in sorted(arguments.items())]
        shown = f"|{len(given)} {' '.join(given)} " if given else ""
        state.history(step, f"RUN {shown}{' '.join(command.args)}", empty=False)

    def _mount_content(self, mount: run_mounts.RunMount, stage: Stage, instruction: Instruction) -> Any:
        """What a mount brings that a step depends on: no cache, and no secret."""
        if mount.kind != "bind":
            return None
        if mount.origin:
            return self._origin(mount.origin, stage, instruction)
        try:
            return self._context.digest(mount.source)
        except OSError as error:
            raise instruction.error(f"--mount: {mount.source!r} not found", mount.source) from error

    @staticmethod
    def _command(instruction: Instruction, command: commands.Command, run: Callable[[], int]) -> None:
        words = " ".join(command.args)
        try:
            code, why = run(), ""
        except DockerfileError:
            raise
        except RuntimeFailure as error:
            if error.exit_code not in (126, 127):
                raise
            code, why = error.exit_code, f": {error.message}"
        if code:
            failure = instruction.error(f"The command '{words}' returned a non-zero code: {code}{why}")
            failure.exit_code = code
            raise failure

    # The end

    def _finish(self, state: State) -> Image:
        if self._request.labels:
            words = " ".join(f"{name}={value}" for name, value in sorted(self._request.labels.items()))
            key = _sum("LABEL", self._epoch, state.document, words)
            labels = {**(state.settings.config.get("Labels") or {}), **self._request.labels}
            state.settings.config["Labels"] = labels
            state.history(self._looked_up(key, state, None), f"LABEL {words}", empty=True)
        document = state.finished()
        if "created" not in document:
            document["created"] = timestamp(self._epoch)
        if self._epoch is not None:
            document["created"] = timestamp(self._epoch)

        def make(intake: Intake) -> list[SourceImage]:
            layers = stored_layers(intake, state.blobs)
            return [stage_image(intake, document, layers, self._request.names)]

        return self._store.take_in(make, Silent())[0]


def _owner(merged: Path, wanted: str) -> tuple[int, int]:
    """Docker's --chown: USER[:GROUP]; the group of a bare number is the same number."""
    if wanted.isdecimal():
        return int(wanted), int(wanted)
    user = users.resolve(merged, wanted)
    return user.uid, user.gid


def _chown(instruction: Instruction, merged: Path, wanted: str) -> tuple[int, int]:
    try:
        return _owner(merged, wanted)
    except RuntimeFailure as error:
        raise instruction.error(f"--chown: {error}", wanted) from error


def _sum(*parts: Any) -> str:
    text = json.dumps([_VERSION, *parts], sort_keys=True, default=list)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _new(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def _memory() -> str | None:
    """A filesystem in memory, for secrets; None when there is none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
