"""Cues that the text has drifted, or that its writer doubts it.

Examples: "that was about rice", "my train of thought has derailed", "what has rice to do with it?".
"""

from __future__ import annotations

from countersteer.judging.cue import Cue, cue
from countersteer.judging.wording import AGAIN, W_ADV, WILL

DRIFT: tuple[Cue, ...] = (
    # drifting, told from outside
    cue(
        "was-about",
        1.5,
        r"(?:that|this|all that|it all|those|most of that)(?: \w+ly| all| last bit| last part| part|"
        r" bit)? (?:was|were) (?:all |really |meant |only )?(?:about|for|from|"
        r"to do with) (?!\d)[^.!?]{2,60}",
        anchored=True,
    ),
    cue(
        "i-wrote-about",
        1,
        r"\bi (?:just )?(?:wrote|went on|talked|rambled|answered|was on|was going on|spoke|"
        r"waffled)(?: \w+)? (?:about|on)\b",
    ),
    cue(
        "beside-point",
        1.5,
        r"\b(?:(?:is|are|was|were|'s|all|completely|totally|entirely|utterly|wholly|quite|rather|"
        r"somewhat|mostly) (?:beside the point|irrelevant|unrelated|off[- ]topic|off the point|wrong|"
        r"besides the point)|has no place (?:here|in)|have no place (?:here|in)|not (?:helpful|useful|"
        r"relevant|on topic)(?= *[.,!]))",
        anchored=True,
    ),
    cue(
        "enough",
        2,
        r"(?:enough (?:of (?:that|this)|about|with the|already about)|(?:that'?s )?(?:enough|"
        r"too much) (?:rambling|digressing|digression|of a tangent|of a detour|nonsense|about)|"
        r"so much for (?:the |that |my )?(?:\w+ )?(?:tangent|digression|detour))\b",
        anchored=True,
    ),
    cue(
        "so-much-for",
        1,
        r"(?:so much for|hold that|leaving|leave|setting|set)(?: \w+){1,2}(?: aside)?(?= *[.,:;])",
        anchored=True,
    ),
    cue(
        "mind-wandered",
        2,
        r"(?:my|the) (?:\w+ )?(?:train of thought|mind|brain|thoughts?|attention|focus|pen|keyboard|"
        r"fingers?|memory|answer|circuits|wires|notes)(?: \w+)? (?:has |have |had |just |got |is |"
        r"was |went |must have )*(?:derailed|wandered|wandering|drifted|drifting|strayed|crossed|"
        r"slipped|gone|lost|jumped|off|mixed|scrambled|astray|elsewhere|blank|ran|run|failed|left)\b",
        own=True,
        anchored=True,
    ),
    cue(
        "own-drifts",
        2,
        r"(?:that|this|the|my) (?:\w+ )?(?:paragraph|answer|sentence|reply|response|text|section|"
        r"explanation|draft|list|statement|claim) (?:has |have |had |is |was |just |got |must be |"
        r"should be |needs to be )*(?:drift\w*|wander\w*|stray\w*|derail\w*|ran away|run away|"
        r"retracted|withdrawn|deleted|struck|scrapped|redone|rewritten|corrected|replaced|gone|went|"
        r"lost|escaped|veered|got away|a mess|must go|needs? (?:redoing|rewriting|replacing|"
        r"correcting|a redo))\b",
        own=True,
        anchored=True,
    ),
    cue(
        "i-begin-again",
        2,
        rf"\b(?:shall i|should i|i|may i|can i|and i|so i) (?:will |shall |'ll |must |am |"
        rf"here(?:by)? )?(?:re-?)?(?:begin|start|try|answer) (?:this |it |that |my answer )?(?:{AGAIN}|"
        rf"again)(?= *[.,:;!?—–)\]]|$)",
        own=True,
    ),
    cue(
        "did-i-say",
        2,
        r"\bdid i (?:really |just |seriously |actually )?(?:say|write|mention|type|claim|put|call)\b",
        own=True,
    ),
    cue(
        "what-has-x",
        2,
        r"\bwhat (?:does|do|has|have|did|is|are|was|"
        r"on earth does) [^.!?]{1,40}?(?:\bdo(?:ing)? with\b|\bdoing (?:here|in (?:this|my|"
        r"there))\b)[^.!?]{0,40}\?",
        own=True,
    ),
    cue("why-x", 1, r"(?:why|how come|where'?s) (?:\w+ ){0,2}?\w+\?", anchored=True),
    cue(
        "reconsider",
        2,
        rf"\b{WILL} {W_ADV}(?:re-?consider|re-?think|think (?:again|(?:this|that|it) (?:over|"
        rf"through) again)|re-?assess|re-?examine|re-?calculate|re-?compute|re-?evaluate|look again|"
        rf"wipe the slate)\b",
        own=True,
    ),
    cue("double-check", 1, rf"\b{WILL} {W_ADV}(?:double-?check|re-?check|check that|verify that|re-?read)\b", own=True),
    cue(
        "owe-correction",
        2,
        r"\b(?:a (?:quick |small |brief |major )?(?:correction|retraction) (?:is in order|is needed|"
        r"is due|is called for|here)|i owe you (?:a correction|an apology|a proper|a better|the)|"
        r"i have to (?:correct|apologi[sz]e)|i need to apologi[sz]e)",
        own=True,
    ),
    cue(
        "excuse-detour",
        2,
        r"(?:forgive|excuse|pardon|sorry about|ignore|apologies for) (?:the|my|that|"
        r"this) (?:\w+ )?(?:detour|digression|tangent|ramble|rambling|wandering|aside|interruption|"
        r"mix-?up|nonsense|muddle|slip|confusion|drift|drifting|sidetrack|excursion|false start)\b",
        own=True,
        anchored=True,
    ),
    cue(
        "tangent-over",
        2,
        r"(?:(?:tangent|digression|detour|rant|ramble|aside|excursion) (?:over|ends|ended|aside|"
        r"finished)|(?:end of|end) (?:the |that |my )?(?:tangent|digression|detour|rant|ramble)|"
        r"(?:but |and )?(?:enough|no more) (?:rambling|digressing|wandering|waffling|digressions?|"
        r"waffle))\b",
        anchored=True,
    ),
    cue(
        "i-asked-gave",
        2,
        r"\byou (?:\w+ )?(?:asked|wanted|meant|needed)\b[^.!?]{1,60}?\b(?:and|but|yet|while|"
        r"whereas)(?: here)? (?:i|i'm|i've|my|that|this|what i)\b",
        own=True,
    ),
    cue(
        "what-you-asked-was",
        2,
        r"(?:(?:so|now|and),? )?(?:what you (?:actually |really )?(?:asked|wanted|meant)(?: for|"
        r" to know| me)? (?:was|is)|as (?:to|for) what you (?:asked|wanted)|your (?:actual |"
        r"real )?question,? (?:again|then)|the thing you asked)\b",
        own=True,
        anchored=True,
    ),
    cue(
        "your-question",
        1.5,
        r"(?:(?:anyway|right|now|so|ok|okay),? )*(?:to |on to |about )?your (?:actual |real |"
        r"original )?question(?: (?:about|on|again|was)\b|(?= *[.:]))",
        own=True,
        anchored=True,
    ),
)
