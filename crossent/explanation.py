"""The parts of what `crossent.explain` returns, by the names that types and isinstance need."""

from crossent.tools.explain import (
    Check as Check,
    Explanation as Explanation,
    Finding as Finding,
    Row as Row,
    Step as Step,
    explain as explain,
)
