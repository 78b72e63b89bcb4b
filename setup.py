"""The native extension, which setup.cfg cannot declare; everything else stands there."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "unionfs.session._hooks",
            ["unionfs/session/hooks.c"],
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
        )
    ]
)
