"""The native extensions, which setup.cfg cannot declare; everything else stands there."""

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra"]
#: What Cython writes is not ours to mend.
GENERATED = ["-O2", "-Wno-unused-parameter"]

#: Python as it stands, made faster: what every request passes through.
COMPILED = ("nodes", "tree", "layer", "changes", "upper")

setup(
    ext_modules=[
        Extension("unionfs.session._hooks", ["unionfs/session/hooks.c"], extra_compile_args=FLAGS),
        *cythonize(
            [
                Extension(
                    "unionfs.session.fastpath",
                    ["unionfs/session/fastpath.pyx"],
                    include_dirs=["unionfs"],
                    extra_compile_args=GENERATED,
                ),
                Extension(
                    "unionfs.ledger",
                    ["unionfs/ledger.pyx"],
                    include_dirs=["unionfs"],
                    extra_compile_args=GENERATED,
                ),
                *(
                    Extension(
                        f"unionfs.{name}",
                        [f"unionfs/{name}.py"],
                        include_dirs=["unionfs"],
                        extra_compile_args=GENERATED,
                    )
                    for name in COMPILED
                ),
            ],
            build_dir="build/cython",
            compiler_directives={"language_level": "3", "annotation_typing": False, "binding": True},
            quiet=True,
        ),
    ]
)
