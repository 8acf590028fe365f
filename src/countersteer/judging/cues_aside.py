"""Cues of an aside to oneself or the reader that ends one answer and opens another.

Examples: "steering back to bees", "stopping here", "here goes again", "make that the Pacific".
"""

from __future__ import annotations

from countersteer.judging.cue import Cue, cue
from countersteer.judging.wording import W_ADV, WILL

ASIDE: tuple[Cue, ...] = (
    # asides
    cue(
        "steering-back",
        1.5,
        r"(?:steering|coming|circling|swinging|bringing (?:it|this|us)|turning|heading|"
        r"moving) (?:this |it |us |me )?back (?:to|on)\b",
        anchored=True,
    ),
    cue(
        "stopping",
        1.5,
        r"(?:stopping|pausing|halting) (?:here|there|right there|right here|myself|this)\b|"
        r"\bi'?m (?:going to|gonna) (?:stop|quit) (?:and|there|here)\b",
        anchored=True,
    ),
    cue(
        "throw-out",
        1,
        r"(?:throw|toss|cross|rub|wipe|chuck|bin|hold|trash) (?:that|this|it|all that|"
        r"that thought)(?: away| out| off| thought)?(?:,? please)?(?= *[.,!;—–]|$)",
        anchored=True,
    ),
    cue(
        "crossing-out",
        2,
        r"(?:crossing|rubbing|wiping|tossing|throwing|striking|taking|blotting|editing|binning|"
        r"scratching|undoing|walking) (?:that|this|it|all that|all of that)(?: \w+)?(?: out| away|"
        r" back| off)?(?= *[.,:!;—–]|$)",
        own=True,
        anchored=True,
    ),
    cue(
        "here-again",
        2,
        r"here (?:i|we) go again\b|here goes again|here(?:'?s| is| comes| are) (?:another|"
        r"my (?:second|next|new|real|actual)|a (?:second|new|fresh|better|corrected|proper|revised|"
        r"cleaner)|an actual|the (?:second|new|revised|corrected|proper)) (?:attempt|try|go|version|"
        r"answer|shot|start|one|take)\b|here it is (?:again|corrected|without|properly|once more)|"
        r"here(?:'?s| is) what (?:i|it) should have",
        own=True,
        anchored=True,
    ),
    cue(
        "should-have-said",
        2,
        r"\bi should have (?:said|written|told|explained|answered|started|described|put|been|begun|"
        r"given|talked|stuck|kept)\b",
        own=True,
    ),
    cue(
        "off-again",
        2,
        r"\bi'?m (?:off|at it|doing it|there|going off|wandering off) again\b|\b(?:there|off) i (?:go|"
        r"went)(?: again)?\b",
        own=True,
    ),
    cue(
        "turn-label",
        1,
        r"(?:anyway|right|now|so|okay|ok|anyhow)(?:,|:) ?(?:the |your |to )?\w+(?: \w+)?(?= *[.:!])",
        anchored=True,
    ),
    cue(
        "lucky",
        2,
        r"(?:(?:second|third|2nd|3rd) time(?:'s)? (?:lucky|the charm|around)|"
        r"(?:my )?answer,? (?:second|again|take|attempt|corrected|revised|version)[^.!?:]{0,20}(?=:)|"
        r"(?:first|second|third|new|fresh|revised|corrected) (?:answer|version|attempt|draft|"
        r"try)(?= *[:.])|from the (?:top|beginning|start)(?:,? then|,? again)?(?= *[.:!—–]|$)|(?:from|"
        r"at|back to) (?:scratch|zero|square one)(?:,? then| again)?(?= *[.:!—–]|$))",
        own=True,
        anchored=True,
    ),
    cue(
        "ignore-me",
        2,
        r"(?:ignore|don'?t mind|disregard|excuse|forgive|never ?mind|"
        r"pay no attention to) me(?= *[.,!;:—–]|$)|(?:nm|nvm|jk|brb)\b(?= *[.,!;:—–]|$)|"
        r"wrong (?:convo|chat|window|tab|one|thing|thread|file|note|page|notes|card|script|channel|"
        r"animal|place|person|way|end)(?= *[.,!;:—–)\]]|$)|(?:wtf|idk why)\b",
        anchored=True,
    ),
    cue(
        "never-mind",
        1,
        r"(?:never ?mind|forget it|whatever|back up|start over|start again|begin again|"
        r"go back)(?= *[.,!;:—–)\]]|$)",
        anchored=True,
    ),
    cue(
        "not-making-sense",
        2,
        r"\bi(?:'m| am) (?:not|hardly|barely) (?:\w+ )?(?:making sense|answering|helping|addressing|"
        r"on topic|talking about the)|(?:wait|hold on|no|hmm|stop)\W+something(?:'s| is) wrong|"
        r"something(?:'s| is| has| went| was| must have)(?: gone| been)? (?:wrong|off|amiss|awry|odd|"
        r"not right)(?: here| there| with| about| in)|(?:another|a different|the wrong|"
        r"someone else'?s) (?:question|sheet|page|prompt|task|notes)\b",
        own=True,
    ),
    cue(
        "miscalculated",
        2,
        r"(?:i )?(?:miscalculated|miscounted|misread|misremembered|mistyped|misspoke|misquoted)\b",
        own=True,
        anchored=True,
    ),
    cue(
        "recount",
        2,
        rf"\b{WILL} {W_ADV}(?:re-?count|re-?derive|re-?check|come at (?:this|it|that) again|"
        rf"rein (?:this|it|that|myself) in|approach (?:this|it) again)\b",
        own=True,
    ),
    cue("i-mean-x", 1.5, r"(?:(?:\w+ ){0,2}\w+,? )?i mean(?:t)?(?= *[.!])", own=True, anchored=True),
    cue(
        "answered-nobody",
        2,
        r"\bi(?:'ve| have)? (?:just )?(?:answered|addressed|described) (?:a|"
        r"the) (?:\w+ )?(?:question )?(?:nobody|no one|you did|you never|that was never|different|"
        r"other|wrong)",
        own=True,
    ),
    cue(
        "error-crept",
        2,
        r"(?:(?:that|this|it|the above) (?:contains|has|had|contained|includes) (?:an?|some|"
        r"several) (?:\w+ )?(?:errors?|mistakes?|slips?)|(?:an?|some) (?:error|mistake|slip|"
        r"muddle)s? (?:crept|slipped|got|sneaked|snuck|found its way))\b",
        own=True,
        anchored=True,
    ),
    cue("to-correct", 2, r"to correct (?:myself|that|this|what i|the above)\b", own=True, anchored=True),
    cue(
        "was-that-asked",
        2,
        r"(?:how )?(?:is|was|does|did|do|are|were) (?:that|this|any of (?:that|this)|it|those|"
        r"these)\b[^.!?]{0,40}\b(?:asked|your question|the question|answer\w*|relevant|related|"
        r"helpful|help you|on topic)\b[^.!?]{0,20}\?",
        own=True,
        anchored=True,
    ),
    cue("let-me-think", 1, r"\blet me (?:think|check|see|look|read|verify)\b", anchored=True),
    cue(
        "compose-myself",
        2,
        rf"\b{WILL} {W_ADV}(?:(?:gather|collect|compose|clear|straighten|sort out|order) (?:my|myself)|"
        rf"take a (?:deep )?breath|stop(?= *[.,;!—–]| here| there| right| and)|read (?:that|"
        rf"the question|your question) again|look at (?:the|your) question|begin at the beginning)",
        own=True,
    ),
    cue("stop-right", 1, r"stop (?:right )?(?:there|here)(?= *[.!,])|deep breath(?= *[.!,])", anchored=True),
    cue(
        "consider-deleted",
        2,
        r"(?:consider|regard|treat|take|count) (?:that|this|it|the above|all that|everything above|"
        r"all of that) (?:as )?(?:deleted|withdrawn|retracted|unsaid|void|struck|erased|scrapped|"
        r"unwritten|gone|cancelled|never said|never written)\b",
        own=True,
        anchored=True,
    ),
    cue(
        "colon-label",
        1.5,
        r"(?:better|fixed|corrected|rewritten|restarted|revised|again|retry|(?:the|"
        r"your) question,? (?:once )?again|this time[^.!?:\n]{0,25})(?= *:)",
        anchored=True,
    ),
    cue(
        "once-more",
        2,
        r"(?:once more|once again|one more time),[^.!?:\n]{0,30}(?=:)|(?:attempt|try|take|round|"
        r"version) ?#? ?(?:2|3|two|three|ii)\b(?= *[:.,!—–]|$)",
        own=True,
        anchored=True,
    ),
    cue(
        "fog",
        2,
        r"(?:brain fog|autopilot|(?:total|complete|utter|pure|absolute) (?:gibberish|nonsense|rubbish|"
        r"garbage|drivel|tangent|digression))\b",
        anchored=True,
    ),
    cue(
        "x-not-y",
        1.5,
        r"(?:that|this|those|these|it|they)(?:'?s| is| was| are| were|'re) (?:about |for |how |"
        r"all )?(?:\w+ ){0,3}\w+,? (?:and )?not (?:for |about |the |an? |how )?\w+(?= *[.,!;:—–]|$)",
        anchored=True,
    ),
    cue(
        "make-that",
        1.5,
        r"make that (?:an? |the )?\w+(?= *[.,!;:—]|$)|(?:that|this|it) should (?:be|read|have been|"
        r"say|have said)\b|\w+, not \w+(?= *[!—–]| *$)",
        anchored=True,
    ),
    cue(
        "turned-into",
        1.5,
        r"(?:that|this|it|all this)(?: answer| reply)?(?: has|'s)? (?:turned|turning|become|became|"
        r"morphed|slid|slipped) (?:into|to) ",
        anchored=True,
    ),
    cue(
        "wont-do",
        2,
        r"(?:that|this|it) (?:won'?t do|will not do|will never do|can'?t stand|cannot stand|"
        r"isn'?t working|is not working|never happened|didn'?t happen|needs (?:redoing|rewriting|"
        r"another|a redo|work|fixing|correcting))\b",
        anchored=True,
    ),
    cue(
        "put-right",
        2,
        rf"\b{WILL} {W_ADV}(?:put (?:that|this|it|things) (?:right|straight|differently and)|"
        rf"set (?:that|this|it|things|the record) (?:right|straight)|clear (?:that|this) up|"
        rf"make (?:that|this|it) right|sort (?:that|this) out|undo that|pretend|stop (?:rambling|"
        rf"talking|writing|here|now)|leave (?:that|the|rice) (?:\w+ )?(?:aside|there|behind|out)|"
        rf"drop the|forget (?:about )?the|get to (?:the|your)|cut (?:that|this|to)|keep to)\b",
        own=True,
    ),
    cue(
        "what-i-should",
        2,
        r"what i (?:should|ought to|need to|meant to|was meant to|was supposed to|want to|wanted to|"
        r"am supposed to) (?:be |have )?\w+",
        own=True,
        anchored=True,
    ),
    cue(
        "jumped-gun",
        2,
        r"\bi (?:jumped the gun|spoke too soon|dropped the ball|lost the plot|put my foot|got ahead|"
        r"went blank|had a (?:slip|lapse|moment|glitch)|have no idea what (?:that|i)|was miles (?:off|"
        r"away)|was elsewhere|was away with|was daydreaming|was dreaming|was on autopilot|"
        r"crossed (?:my |some )?wires|(?:have|'ve|had) (?:crossed|tangled|mixed))\b",
    ),
    cue(
        "try-instead",
        1.5,
        r"(?:try|read|use|take|here is|here's|have) (?:this|that|the following|this one) (?:instead|"
        r"in its place)\b|instead,? (?:here|let me|try this)|in its place\b|"
        r"second thoughts?(?= *[:,.])",
        anchored=True,
    ),
)
