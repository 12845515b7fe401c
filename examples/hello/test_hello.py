"""Tests of hello, without a test library so that they start fast everywhere."""

from hello import greet

CASES = [
    ([], "Hello, world!"),
    (["Ada"], "Hello, Ada!"),
    (["Ada", "Grace"], "Hello, Ada and Grace!"),
    (["Ada", "Grace", "Edith"], "Hello, Ada, Grace and Edith!"),
]

for names, want in CASES:
    got = greet(*names)
    assert got == want, f"greet({names}) is {got!r}, want {want!r}"
print(f"{len(CASES)} tests passed")
