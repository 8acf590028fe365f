"""Cues that something went wrong: judgements of one's own text, errors and drifting told in the first person.

Examples: "none of that is true", "I misread the question", "my train of thought has derailed".
"""

from __future__ import annotations

from countersteer.judging.cue import Cue, cue
from countersteer.judging.wording import (
    ADV,
    BAD_STRONG,
    BAD_WEAK,
    BE,
    DEM,
    FOLLOW,
    HAS_BAD,
    NOT,
    NOT_STRONG,
    NOT_WEAK,
    OWN,
    OWN_NOUN,
)

FAULT: tuple[Cue, ...] = (
    # negative judgements of one's own text
    cue("own-bad", 2.5, rf"\b{OWN} (?:i \w+ )?{BE} {ADV}(?:{BAD_STRONG}|{BAD_WEAK}\b)", own=True, anchored=True),
    cue(
        "own-not",
        2.5,
        rf"\b{OWN} (?:{NOT} {ADV}(?:{NOT_STRONG}|{NOT_WEAK}\b|an?\b|\w+ (?:any|you))|{HAS_BAD}|answers|"
        rf"helps)",
        own=True,
        anchored=True,
    ),
    cue(
        "own-subject",
        2,
        rf"(?:the|my|that|this) (?:(?:above|previous|last|first|whole|entire|opening|preceding|two|"
        rf"three|few) ){{1,3}}?{OWN_NOUN} "
        rf"(?:was|is|are|were) (?:about|for|on|from|describing)\b|"
        rf"(?:the|my|that|this) (?:answer|paragraph|reply|response|explanation|section) (?:was|"
        rf"is) (?:about|describing)\b",
        own=True,
        anchored=True,
    ),
    cue("that-bad", 2, rf"\b{DEM} ?{BE} {ADV}{BAD_STRONG}{FOLLOW}", anchored=True),
    cue("that-not", 2, rf"\b{DEM} ?{NOT} {ADV}{NOT_STRONG}", anchored=True),
    cue(
        "that-at-all",
        2,
        r"(?:that|this|those|these)(?:'?s| is| was| are| were|n'?t| isn'?t| wasn'?t)? ?(?:not |"
        r"hardly )(?:about |an? )?(?:\w+ ){1,2}?(?:at all|advice|answer)\b",
        anchored=True,
    ),
    cue("that-has", 2, rf"\b{DEM} ?{HAS_BAD}", anchored=True),
    cue("that-weak", 1, rf"\b{DEM} ?(?:{BE} {ADV}{BAD_WEAK}\b|{NOT} {ADV}{NOT_WEAK})", anchored=True),
    cue(
        "bare-bad",
        2,
        r"(?:(?:all|totally|completely|utterly|entirely|just|plain|quite|way|so|still|again) )?"
        r"(?:wrong(?: \w+)?(?: \w+)?|incorrect|off[- ]topic|off track|nonsense|rubbish|gibberish|"
        r"not (?:even )?(?:true|right|correct|it|what|about)\b[^.!?]{0,40}|"
        r"no good|way off|mixed (?:that )?up|mixed up my|(?:i )?lost (?:the|my) (?:thread|plot|"
        r"way))(?: again| either| entirely| altogether)?(?= *(?:[.!,;…—–)\]]|$)| -)",
        anchored=True,
    ),
    cue(
        "dropped-i",
        2,
        r"(?:(?:completely|totally|somehow|just|really) )?(?:mixed up|misread|misunderstood|mixed|"
        r"got (?:sidetracked|side-tracked|lost|carried away|distracted|muddled|confused|off|that|my|"
        r"the)|lost (?:the|my) (?:thread|train|plot|way|place|focus)|went off|"
        r"messed|muddled|confused|forgot (?:the|what|your)|took a wrong turn|wandered|drifted|strayed|"
        r"slipped|botched|bungled|wrote the wrong|gave you the wrong|answered the wrong|had the wrong|"
        r"screwed)\b",
        anchored=True,
    ),
    # first person: an error, a misreading, drifting
    cue(
        "i-misread",
        2,
        r"\b(?:i|we|we've|we have|i've|i have|i had|must have|seem to have|i think i|i may have|"
        r"i might have|i fear i)(?: \w+ly| just| have| seem to have| must have| appear to have| then|"
        r" also| there| somehow)* "
        r"(?:misread|mis-read|misheard|misspoke|mis-?spoken|misunderstood|misinterpret\w*|"
        r"misremember\w*|mis-?stated|misjudged|miscalculated|miscounted|mistook|"
        r"mistyped|misfired|mislaid|misled|mixed up|mixed|muddled|jumbled|garbled|conflated|confused|"
        r"botched|bungled|fumbled|flubbed|goofed|"
        r"messed|slipped|blundered|screwed|stumbled|erred|drifted|wandered|strayed|veered|digress\w*|"
        r"meandered|ramble[ds]?|swerved|derailed|"
        r"wander|drift|stray|lapsed|tripped|fluffed|overlooked the question|forgot (?:what|the|your|"
        r"my)|lost (?:the|my|track|sight|focus|concentration|it)|"
        r"(?:went|gone) (?:\w+ ){0,2}?(?:off|astray|wrong|down (?:a|the|an)|sideways|on (?:a|an|"
        r"about)|too far|overboard)|"
        r"missed (?:the point|your|the question|what)|made (?:(?:an?|some|several|two|"
        r"the) (?:\w+ ){0,2}?)?(?:mistakes?|errors?|slips?|blunders?|mess|hash|muddle)(?! (?:for|as|"
        r"of trusting))|"
        r"made (?:that|this|it) up|(?:jumped|leapt|shot|ran) (?:ahead|off|to|away)|"
        r"(?:got|gotten|get|was|been|am|became) (?:\w+ ){0,2}?(?:sidetracked|side-tracked|distracted|"
        r"lost\b|off|carried away|derailed|mixed|muddled|confused|"
        r"muddled|turned around|ahead of myself|wrong|mistaken|in a muddle|tangled|wandering|drifting|"
        r"digressing|rambling|"
        r"backwards|way off|completely off|on the wrong|thinking of (?:the|a|an|another)|looking at the wrong)|"
        r"got (?:that|this|it|those|the|my|these|everything|all)\b[^.!?]{0,30}?\b(?:wrong|backwards?|"
        r"mixed|muddled|confused|the wrong|back to front|upside down|badly)|"
        r"got (?:the|that|this|your|my) \w+ (?:\w+ )?wrong)",
        own=False,
    ),
    cue(
        "i-am-off",
        2,
        r"\b(?:i'?m|we're|we are|i am|i was|i've been|i have been|i seem to be|i keep|i kept|"
        r"i started|i began)(?: \w+ly| still| now| just| quite| way| getting| going)* "
        r"(?:drift\w*|rambl\w*|digress\w*|wander\w*|stray\w*|veer\w*|meander\w*|off[- ](?:topic|track|"
        r"subject|course|on|the)|going (?:in circles|nowhere|astray)|(?:the )?wrong|"
        r"(?:talking|describing|explaining|writing|telling you|telling|answering|giving you|speaking|"
        r"thinking|describing|babbling|going on|discussing|waffling|waffle) (?:\w+ ){0,3}?(?:about|"
        r"the wrong|of|on|something|nonsense|a different|another|instead)|"
        r"(?:describing|explaining|answering|discussing) \w+|babbling|waffling|blathering|confus\w*|"
        r"mixing|contradicting|repeating myself|lost\b|mistaken|talking nonsense|sidetracked|"
        r"distracted|getting (?:off|sidetracked|carried))",
        own=False,
    ),
    cue(
        "i-wrong-thing",
        2,
        r"\b(?:i|i've|i have)(?: have| just| find i| see i| realise i| realize i)*(?: \w+ly)? (?:gave|"
        r"given|told|wrote|written|have|had|used|picked|took|taken|answered|quoted|named|described|"
        r"listed|compared|solved|put|chose|cited|said|posted|reached for|grabbed|pasted|converted|did|"
        r"calculated|swapped|switched)\b"
        r"[^.!?]{0,40}?\b(?:wrong|incorrect\w*|bad (?:information|info|advice|answer)|"
        r"false (?:information|info)|misinformation|nonsense|irrelevant|unrelated|nonsense|"
        r"off[- ]topic|backwards?|a different|something else|another question|by mistake|in error|"
        r"mixed up|by accident|the other way)",
        own=True,
    ),
    cue(
        "i-not-answered",
        2,
        r"\b(?:i|we)(?:'m| am|'ve| have)? ?(?:haven'?t|didn'?t|did not|have not|not|never|wasn'?t|"
        r"was not|am not|failed to|still haven'?t)(?: \w+ly| even| yet)* "
        r"(?:answer\w*|address\w*|respond\w*|been answering|say(?:ing)? (?:a word|anything) about|"
        r"touch\w* on|get to)(?: \w+){0,3} (?:question|you|your|asked|it|that)",
        own=True,
    ),
    cue(
        "i-meant",
        2,
        r"(?:\w+,? )?(?:what )?i (?:really |actually |just )?meant (?!(?:to (?:add|mention|include|"
        r"be)|by|it|that as)\b)",
        own=True,
        anchored=True,
    ),
    cue(
        "i-was-to",
        2,
        r"\b(?:i|we) (?:(?:was|were|am|'m) (?:supposed|meant|asked|going|"
        r"trying) to (?:be )?(?:\w+ ){0,1}?(?:talk\w*|explain\w*|answer\w*|describ\w*|tell\w*|"
        r"discuss\w*|writ\w*|help\w*|giv\w*|list\w*|cover\w*)|should (?:be|have been) (?:talking|"
        r"explaining|answering|describing|telling|writing|helping|giving|discussing|focus\w*)|(?:was|"
        r"were|had been) (?:talking|thinking) (?:about|of))",
        own=True,
    ),
    cue(
        "i-wonder",
        2,
        r"\b(?:i (?:don'?t|do not|can'?t|cannot|have no idea|'m not sure|am not sure)|i'?m not sure|"
        r"no idea|not sure|goodness knows|who knows|god knows|heaven knows)(?: \w+)? ?(?:why|where|"
        r"how|what|believe)(?: on earth)? (?:i (?:'m |am |was |just |even |started |brought |said|"
        r"wrote|went|got|went|mentioned|did|put|ended|keep|kept|have|came)|(?:that|this|all that|"
        r"those) (?:came|is coming|was about|has|got|is from|was))",
        own=True,
    ),
    cue(
        "nowhere",
        2,
        r"(?:that|this|all that|all of that) (?:came|just came|slipped|popped|snuck|"
        r"sneaked) (?:\w+ )?(?:out of nowhere|from nowhere|out of the blue|in|out)\b",
        anchored=True,
    ),
    cue(
        "failed",
        2,
        r"\bi(?:'ve| have| had)?(?: \w+ly| just)? (?:failed|neglected|forgotten|managed not|"
        r"omitted) to (?:\w+ )?(?:answer|address|respond|explain)",
        own=True,
    ),
    cue(
        "keep-doing",
        2,
        r"\bi (?:keep|kept|keep on|am still|'m still|was still|seem to be|ended up|wound up|started|"
        r"went on) (?:\w+ly )?(?:talking|writing|going|saying|describing|returning|getting|bringing|"
        r"rambling|mentioning|explaining|telling|discussing|slipping|drifting|mixing|"
        r"confusing)\b(?! (?:the|it|this) (?:until|for))",
        own=False,
    ),
    cue(
        "on-mind",
        2,
        r"\bi (?:had|have|'ve got|must have had|still have) (?:\w+ ){1,3}on (?:my|the) (?:mind|"
        r"brain)\b",
        own=True,
    ),
    cue(
        "error-above",
        2,
        r"\b(?:there(?:'s| is| was| are| were) (?:an?|some|several|two) (?:\w+ ){0,2}?(?:mistakes?|"
        r"errors?|slips?|mix-?ups?|bugs?|typos?|problems?) (?:in (?:what i|my|the above|"
        r"that (?:answer|code|function|list|paragraph|calculation))|above|there\b)|"
        r"(?:notice|noticed|see|spot|spotted|found|find|caught|made|realise|"
        r"realize) (?:that there(?:'s| is| was) )?(?:an?|the|my|some) (?:\w+ ){0,2}?(?:mistake|error|"
        r"slip|mix-?up|bug|contradiction|problem) (?:in (?:what i|my|the above)|above|up there|"
        r"there\b))",
        own=True,
    ),
    cue(
        "i-retract",
        2,
        r"\b(?:i (?:take (?:that|it|this|all that|it all) back|stand corrected|retract|withdraw|"
        r"(?:must|should|need to|have to) (?:correct|retract|withdraw|apologi[sz]e)|spoke too soon|"
        r"meant to say)|"
        r"i'?(?:ll| will)? take (?:that|it|all of that|all that) back|let me (?:take (?:that|it|"
        r"all that|all of that) back|unsay)|i(?:'ve| have) (?:just )?(?:contradicted myself|"
        r"done it (?:again|a second time))|"
        r"i should(?:n't| not) have (?:said|written|gone|brought|mentioned|started)|i know better)",
        own=False,
    ),
    cue(
        "i-digress",
        2,
        r"\b(?:i digress|i misspeak|i ramble|i('?m| am) (?:rambling|digressing|drifting|waffling|"
        r"off topic))\b",
    ),
    cue(
        "i-realise",
        1,
        r"\b(?:i (?:just |now |suddenly )?(?:see|find|notice|noticed|realis\w*|realiz\w*|spotted|spot|"
        r"caught) (?:now )?(?:that|i|i've|i'm|my|this|an?|the|myself)\b|(?:looking|reading|"
        r"checking) (?:that |this |it )?(?:back|over|again)|on (?:checking|re-?reading|reflection|"
        r"second thought)|re-?reading|come to think of it)",
    ),
)
