"""Every cue of explicit restart language.

The cues follow the parts that such language has in English, not a list of phrases: a negative judgement of one's own
text, a first-person report of an error or of drifting, the announcement of a new start, an instruction to disregard
what was written, a label, a rhetorical question, a return to the question. A piece's weight is the largest of the
cues that match it, plus half of the next, plus its interruptions (`voice.py`).
"""

from __future__ import annotations

from countersteer.judging.cues_aside import ASIDE
from countersteer.judging.cues_drift import DRIFT
from countersteer.judging.cues_fault import FAULT
from countersteer.judging.cues_restart import RESTART
from countersteer.judging.cues_return import RETURN

CUES = (*FAULT, *RESTART, *DRIFT, *ASIDE, *RETURN)
