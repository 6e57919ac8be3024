"""`python -m tests.gpu_inference.node_cases` runs every node test and lists those that pass."""

from __future__ import annotations

import sys

from gpu_inference.conformance import LIST, check_node_test, must_pass, node_cases


def main() -> None:
    """Rewrites the list, and says what no longer passes."""
    before, passing = set(must_pass()), []
    for name in sorted(node_cases()):
        try:
            check_node_test(name)
        except Exception as error:
            if name in before:
                print(f"{name} fails now: {str(error)[:200]}")
        else:
            passing.append(name)
    LIST.write_text(
        "# node tests of onnx.backend.test that pass, written by python -m tests.gpu_inference.node_cases\n"
        + "\n".join(passing)
        + "\n"
    )
    print(f"{len(passing)} of {len(node_cases())} pass, {len(before)} did before")


if __name__ == "__main__":
    sys.exit(main())
