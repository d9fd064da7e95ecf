"""Collecting problems by kind: all are counted, the first of each kind are kept as examples."""

from dataclasses import dataclass, field
from typing import Any

from prompt_pretrain.wording import counted


@dataclass
class Finding:
    """One kind of problem."""

    severity: str  # "error": training or evaluation fails or is wrong; "warning": worth a look
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Report:
    """Problems by kind, in the order of their first occurrence, and facts about the data set.

    Args:
        name: of the data set.
        examples: how many messages to keep per kind.
    """

    def __init__(self, name: str, examples: int = 3) -> None:
        self.name = name
        self.facts: dict[str, Any] = {}
        self.findings: dict[str, Finding] = {}
        self._examples = examples

    def error(self, kind: str, message: str) -> None:
        """Something that makes training or evaluation fail, or wrong."""
        self._add("error", kind, message)

    def warning(self, kind: str, message: str) -> None:
        """Something unusual that is coped with."""
        self._add("warning", kind, message)

    def count(self, severity: str) -> int:
        """Number of problems of this severity."""
        return sum(finding.count for finding in self.findings.values() if finding.severity == severity)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "dataset": self.name,
            "facts": self.facts,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [{"kind": kind, **vars(finding)} for kind, finding in self.findings.items()],
        }

    def as_text(self) -> str:
        """Everything for people."""
        facts = ", ".join(f"{value} {key}" for key, value in self.facts.items())
        lines = [f"{self.name}: {facts or 'nothing could be read'}"]
        for severity in ("error", "warning"):
            for kind, finding in self.findings.items():
                if finding.severity == severity:
                    lines.append(f"{severity:8}{finding.count:>7} x {kind}")
                    lines += [f"{'':18}{example}" for example in finding.examples]
                    if finding.count > len(finding.examples):
                        lines.append(f"{'':18}and {finding.count - len(finding.examples)} more")
        lines.append(", ".join(counted(self.count(severity), severity) for severity in ("error", "warning")))
        return "\n".join(lines)

    def _add(self, severity: str, kind: str, message: str) -> None:
        finding = self.findings.setdefault(kind, Finding(severity))
        finding.count += 1
        if len(finding.examples) < self._examples:
            finding.examples.append(message)
