"""Word classes of restart language: words that play the same part share a class, so wording never seen is understood.

"I have wandered from your question" and "we strayed off the topic" are one sequence of classes. The fitted weights of
`restart_model.py` see these classes beside the words themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CLASSES = {
    "ME": "i me my myself mine im ive",
    "WE": "we us our ourselves",
    "YOU": "you your yours yourself u ur ya",
    "USER": "user asker questioner reader op poster",
    "DEM": "that this those these it thats",
    "ANSWER": "answer answers response responses reply replies explanation "
    "explanations paragraph paragraphs sentence "
    "sentences text texts draft drafts section sections passage passages "
    "statement statements claim claims line lines "
    "description content contents version versions remark remarks information info wording words summary output post "
    "message material comment comments writeup stuff formulation account assertion copy",
    "LIST": "list bit part step steps number figure figures calculation formula "
    "code date name recipe example examples "
    "total sum arithmetic math maths equation function definition translation poem table item items detail details",
    "QUESTION": "question questions topic topics subject prompt task request query point matter theme issue brief "
    "assignment thread track course script inquiry enquiry original ask",
    "SAID": "said say wrote written write described gave given told explained "
    "mentioned typed stated claimed listed put "
    "posted suggested produced called named offered quoted cited presented spouted began began started provided "
    "outlined attributed credited placed asserted",
    "TALK": "talking writing describing explaining telling discussing giving "
    "listing saying rambling rattling babbling "
    "waffling blathering droning prattling chattering answering covering lecturing ranting going typing explain "
    "describe discuss talk describes describing doing",
    "BAD": "wrong incorrect inaccurate mistaken false untrue erroneous bogus "
    "nonsense gibberish rubbish garbage drivel "
    "irrelevant unrelated nonsensical balderdash poppycock hogwash baloney garbled useless unhelpful misleading "
    "misplaced backwards backward invalid faulty flawed muddled jumbled bunk bull twaddle gobbledygook incoherent "
    "absurd ridiculous silly weird odd strange bizarre embarrassing terrible awful bad off inapplicable misguided "
    "mess messy unsound inverted reversed broken poor hopeless wide untenable upside",
    "ERROR": "mistake mistakes error errors slip slips blunder blunders mixup typo typos oversight confusion muddle "
    "misstep goof lapse miscalculation misunderstanding misreading glitch mishap bungle flub gaffe misfire fault bug "
    "misstatement fumble hiccup brainfart screwup misinformation snafu booboo inaccuracy",
    "DRIFT": "drift drifted drifting drifts wander wandered wandering stray strayed straying digress digressed "
    "digressing digression tangent tangents sidetracked sidetrack distracted derailed derail veered veering veer "
    "meander meandered meandering ramble rambled rambling detour astray rails rabbit hole adrift lost swerved "
    "sideways weeds tangled offtopic carried sidestepped daydreaming daydream woolgathering bunny aside unmoored "
    "skidded spiralled spiraled slid spinning trailed deviated deviation diverged diverted excursion segue nowhere "
    "plot spun rambles distraction",
    "MIXED": "mixed mixing confused confusing conflated conflating misread misheard misspoke misspoken misunderstood "
    "misinterpreted misremembered misremembering mistook misstated misjudged miscalculated miscounted mistyped "
    "swapped transposed jumbled botched bungled fumbled flubbed goofed messed blundered screwed erred stumbled "
    "tripped slipped garbled misattributed misidentified misquoted flipped mangled crossed muddling switched "
    "misplaced missed overlooked skipped forgot forgotten neglected blanked",
    "DISCARD": "scratch strike scrap forget ignore disregard discard delete "
    "erase retract withdraw cancel undo toss bin "
    "scrub void rescind revoke scratching striking scrapping forgetting ignoring discarding deleting erasing "
    "retracting withdrawing cancelling undoing tossing binning scrubbing wipe "
    "wiping trash trashing dump dumping chuck "
    "nix nuke ditch ditching omit overlook remove dismiss unsay rewound "
    "withdrawn retracted struck scratched scrapped "
    "discarded deleted ignored disregarded erased cancelled supersedes supersede superseded belay crumple axe",
    "RETURN": "back return returning returns resume resuming refocus refocusing steer steering redirect redirecting "
    "regroup regrouping rewind rewinding backtrack backtracking backing reverse reversing circle circling revert "
    "reverting reset resetting reboot rebooting recalibrate recalibrating realign pivot pivoting reorient rein "
    "reining restore rolling roll pull pulling bring bringing swing get getting recentre recenter correcting course",
    "AGAIN": "again anew afresh redo redoing restart restarting retry retrying fresh second third another once new "
    "over rephrase rephrasing rewrite rewriting restate restating rework reworking recast recount recompute "
    "recalculate reconsider reconsidering rethink rethinking revise revising revised amend amending amended redone "
    "reattempt restated corrected rewritten replacement",
    "START": "start begin beginning starting try trying attempt attempting go take shot stab scratch top outset do "
    "square zero do-over mulligan",
    "FIX": "fix fixing correct correcting correction corrections repair amend rectify clarify clarification erratum "
    "edit update revision retraction rectifying straighten corrigendum addendum replace replacing substitute",
    "SORRY": "sorry apologies apology apologize apologise apologizing "
    "apologising pardon forgive excuse regret soz sry "
    "regrettably afraid embarrassed ashamed",
    "OOPS": "oops whoops oopsie whoopsie woops ugh argh gah ack yikes eek d'oh "
    "doh dang darn damn dammit drat crap shoot "
    "shit blast rats crikey blimey gosh jeez geez sheesh yeesh ahem erm err er "
    "uh um umm uhh hm hmm hmmm huh eh lol lmao "
    "omg wtf facepalm welp whoa woah oh ah aha oof bah tsk hoo yeah yep bleh bugger heavens goodness gracious",
    "WAIT": "wait hold hang stop halt pause whoa stopping halting pausing hush cut freeze enough",
    "NO": "no nope nah nay",
    "NOT": "not never hardly scarcely neither nor isnt wasnt doesnt dont didnt cannot barely",
    "NONE": "none nothing nowhere nobody zero",
    "REAL": "actual actually real really right proper properly correctly instead rather truly accurate true correctly",
    "PREV": "above previous preceding earlier before former foregoing prior so far last first opening initial "
    "initially aforementioned everything all whole entire entirely",
    "NOTICE": "realise realize realised realized notice noticed noticing realising realizing spot spotted caught "
    "catching see find found rereading reread reading read checking checked looking reviewing recheck rechecked",
    "ASKED": "asked asking want wanted requested need needed meant mean intended after supposed",
    "ANSWERING": "address addressed respond responded tackle cover covered focus concentrate stick focusing focused",
    "TRUTH": "true false truth fact facts",
    "PEOPLE": "people many some most few someone everyone others they he she his her them their who man woman "
    "beginners students writers cooks",
    "IF": "if when whenever unless whether until once before in case",
    "MODAL": "may might can could would should must will shall 'll gonna",
    "LET": "let lets let's lemme allow permit",
    "HERE": "here now",
    "MIND": "mind brain head thought thoughts idea sense autopilot train mental wires memory marbles",
    "NEVERMIND": "nvm nevermind nm",
    "MATCH": "belong belongs relate relates related concern concerns apply "
    "applies relevant relevance fit fits answers "
    "addresses helps help bearing",
}


def _table() -> Mapping[str, str]:
    table: dict[str, str] = {}
    for name, listed in _CLASSES.items():
        for word in listed.split():
            table.setdefault(word, name)
    return MappingProxyType(table)


CLASS_OF: Mapping[str, str] = _table()
"""Class of a lower-case word."""

TELLING = frozenset(
    [
        "ME",
        "USER",
        "ANSWER",
        "QUESTION",
        "BAD",
        "ERROR",
        "DRIFT",
        "MIXED",
        "DISCARD",
        "SORRY",
        "OOPS",
        "WAIT",
        "NO",
        "NONE",
        "LET",
        "NEVERMIND",
    ]
)
"""A piece without a word of these classes, and not opening with one of `OPENING`, is no restart language."""

OPENING = frozenset(["RETURN", "AGAIN", "FIX", "YOU", "REAL"])

VOICED = frozenset(["ME", "SORRY", "OOPS", "WAIT", "DRIFT", "MIXED", "NEVERMIND"])
"""In a text of headings and labels, and in a long sentence, a piece the rules do not know needs one of these."""

FUNCTION = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "or",
        "but",
        "of",
        "to",
        "in",
        "on",
        "for",
        "with",
        "at",
        "by",
        "as",
        "from",
        "into",
        "out",
        "up",
        "down",
        "off",
        "over",
        "about",
        "is",
        "was",
        "are",
        "were",
        "be",
        "been",
        "am",
        "'s",
        "'re",
        "'ve",
        "'d",
        "'m",
        "n't",
        "do",
        "does",
        "did",
        "has",
        "have",
        "had",
        "what",
        "which",
        "where",
        "why",
        "how",
        "then",
        "than",
        "too",
        "very",
        "just",
        "still",
        "even",
        "only",
        "well",
        "so",
        "ok",
        "okay",
        "please",
        "there",
        "more",
        "much",
        "away",
        "any",
        "one",
        "two",
        "ever",
        "also",
        "yet",
        "because",
        "since",
        "like",
        "let's",
        "anyway",
        "though",
        "however",
        "thing",
        "things",
        "something",
        "else",
        "different",
        "other",
        "same",
        "way",
        "place",
        "time",
        "minute",
        "moment",
        "second",
        "want",
        "make",
        "made",
        "got",
        "get",
        "gets",
        "came",
        "come",
        "went",
        "going",
        "gone",
        "keep",
        "kept",
        "know",
        "think",
        "thinking",
        "thought",
        "looks",
        "sounds",
        "seems",
        "seem",
        "look",
        "turned",
        "ended",
        "up",
        "took",
        "taking",
        "next",
        "never",
        "mind",
        "me",
    ]
)
"""Function words and other closed words, kept as they are where they have no class."""
