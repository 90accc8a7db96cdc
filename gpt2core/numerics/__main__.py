"""Print the hashes of the probe on this machine: `python -m gpt2core.numerics`."""

from __future__ import annotations

from gpt2core.numerics import prepare

if __name__ == "__main__":
    prepare("portable")
    from gpt2core.numerics import kernels, probe

    kernels.install()
    for name, sha256 in probe.hashes().items():
        print(f'    "{name}": "{sha256}",')
