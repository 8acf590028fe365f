"""Cues that discard what was written or return to the question.

Examples: "scratch that", "what am I saying?", "you asked about bees, not boats".
"""

from __future__ import annotations

from countersteer.judging.cue import Cue, cue
from countersteer.judging.wording import OWN_NOUN, QUESTION, STOP, W_ADV, WILL

RETURN: tuple[Cue, ...] = (
    # telling the reader to disregard it
    cue(
        "scratch",
        2,
        rf"(?:you (?:can|may|should|must) |so |just |please )*(?:(?:scratch|strike|scrap|nix|"
        rf"don'?t (?:listen to|mind|believe|trust)|un-?do|axe|bin|kill|nvm|nevermind|never mind|delete|"
        rf"erase|cancel|forget|ignore|disregard|skip|discard|retract|drop|toss)(?: all(?: of)?|"
        rf" both of)? (?:that|this|those|these|it all|it|all|both|the above|everything)(?:,? (?:last|"
        rf"one|whole|previous|entire|first|all|too|bit|part|sentence|line|please|bits?|parts?|"
        rf"{OWN_NOUN}))*{STOP}|"
        rf"(?:scratch|strike|scrap) (?:that|all that|all of that)(?= (?:and|lol|it'?s|i|i'?ll|i'?m|let|"
        rf"we|no|for|you|my|the|sorry|start|back|to|from)\b))",
        anchored=True,
    ),
    cue(
        "ignore-own",
        2.5,
        r"(?:you (?:can|should|may|must) |(?:so |and )?please |kindly )?(?:scratch|strike|scrap|"
        r"forget|ignore|disregard|skip|discard|delete|drop|overlook|never ?mind|pay no (?:attention|"
        r"heed) to|pretend|do not follow|don't follow|pretend you never saw|pretend i (?:never|"
        r"did not|didn't))(?: about)?(?: all(?: of)?| both)? "
        r"(?:what i|everything (?:i|above|so far|before)|the (?:above|foregoing|preceding)|(?:the|my|"
        r"that|those|this) (?:(?:last|previous|above|first|whole|preceding|opening|entire|"
        r"earlier) ){1,3}\w+|(?:all )?(?:the |that |those |this |my )(?:\w+ ){0,2}?(?:business|"
        r"nonsense|stuff|part about|bit about|tangent|digression|rubbish|gibberish|answer|reply|"
        r"response|paragraph|sentence|draft|table|explanation|rambling|ramble)|you (?:never|"
        r"didn't) (?:saw|read|see|heard)|i (?:never|didn't))",
        own=True,
        anchored=True,
    ),
    cue(
        "skip-both",
        2,
        r"\b(?:please )?(?:skip|ignore|disregard|forget|discard|delete|don'?t (?:listen to|mind|"
        r"follow|use|believe|trust)|do not (?:follow|use|believe|trust)) (?:that last \w+|"
        r"any of (?:that|the above)|both|all of (?:that|it|the above)|all that|everything (?:above|i|"
        r"so far|before)|the above|what i|my (?:last|previous|first|earlier))\b",
        own=True,
        anchored=True,
    ),
    cue(
        "forget-the",
        1,
        r"(?:forget|never ?mind|ignore|disregard|not|no|enough (?:about|of|with)|drop|scrap|"
        r"strike) (?:about )?(?:(?:all )?(?:the|that|those|my|this|"
        r"these) )?\w+(?: \w+)?(?= *[,.!;:—–-])",
        anchored=True,
    ),
    cue(
        "sorry-for",
        2,
        r"(?:(?:i'?m |i am |so |very |oh )*sorry|(?:my )?apologies|i (?:do )?apologi[sz]e|forgive me|"
        r"excuse me|pardon)(?: \w+)? (?:for|about) (?:(?:the|any|my|that|this|all that|all the|going|"
        r"getting|\w+) )?(?:earlier |above |previous |whole |\w+ )?(?:confusion|mix-?up|mistake|error|"
        r"detour|digression|tangent|ramble|rambling|nonsense|wandering|drifting|digressing|straying|"
        r"off (?:topic|track|on)|sidetracked|slip|muddle|gibberish|derail\w*|rant|aside|misreading|"
        r"misunderstanding|false start|wrong \w+)",
        anchored=True,
    ),
    cue(
        "my-bad",
        2,
        rf"(?:my (?:bad|mistake|error|fault|apologies|slip)|brain (?:fart|freeze|glitch|slip)|"
        rf"slip of the (?:tongue|pen|keyboard)|silly me|how silly of me|false start|wrong (?:answer|"
        rf"topic|question|list|one|tag|way round|way|track|subject|file|recipe|thing)|mea culpa|nvm|"
        rf"red herring|major tangent|tangent alert)(?: there| here| again| entirely)?{STOP}",
        anchored=True,
    ),
    # asking oneself
    cue(
        "self-question",
        2,
        r"\b(?:what (?:am i|was i|on earth am i|in the world am i|the \w+ am i)(?: even)? (?:saying|"
        r"doing|talking|on about|thinking|writing|going|rambling|describing|telling)|"
        r"why (?:am|was|did) i\b[^.!?]{0,60}|(?:how|when) did (?:i|we|that|this) (?:get|end up|"
        r"wind up|come|turn|become|start)|where (?:did|does|is|was|on earth did) (?:that|this|"
        r"all that|it all|these|those|all this) (?:come|came|going|go)|where am i going|what (?:is|"
        r"was) (?:that|this|all that|all this)(?= *[?!])|how did \w+ get in(?:to)? (?:here|there|"
        r"this))",
        own=True,
    ),
    cue(
        "where-was-i",
        1,
        r"\b(?:where (?:was i|were we)(?= *[?.!,])|what was the question|what did you ask|"
        r"what was i saying)",
    ),
    # the question, once more
    cue(
        "you-asked",
        2,
        r"\b(?:(?:but|wait|when|whereas|while|since|no|oh|sorry|and|because|instead)\W+|"
        r"^)(?:wait,? )?you(?:'d| had| actually| really| were| just| only)* (?:asked|wanted|meant|"
        r"asking|requested|said|were asking)(?: me)?\b[^.!?]{0,80}?(?:\bnot\b|\binstead\b|"
        r"\brather than\b|!|\bso\b)",
        own=True,
    ),
    cue(
        "correct-answer",
        1.5,
        r"the (?:actual|real|correct|right|true|proper) answer is (?:this|as follows|below|"
        r"the following)",
        own=True,
        anchored=True,
    ),
    cue(
        "you-never-asked",
        2,
        r"\b(?:you|nobody|no one) (?:didn'?t|did not|never|hadn'?t|weren'?t|were not)(?: \w+ly|"
        r" even)? (?:ask\w*|want\w*|request\w*|mean)\b",
        own=True,
    ),
    cue(
        "question-was",
        2,
        r"(?:the|your)(?: (?:actual|real|original))? (?:question|task|topic|subject|request|"
        r"prompt)(?: here| at hand| you asked)? (?:was|had been|concerned|had nothing)\b(?! (?:easy|"
        r"hard|a good))",
        own=True,
        anchored=True,
    ),
    cue("we-were", 2, r"we were (?:\w+ )?(?:talking|speaking|discussing|on) ?(?:about|of)?\b", own=True, anchored=True),
    cue(
        "you-meant",
        1.5,
        r"(?:oh,? |ah,? |wait,? )?(?:you(?:'d| had| actually| really| were)* (?:asked|wanted|meant|"
        r"asking)|your question (?:was|is|concerned)|the question (?:was|is|concerned|asks|asked)|"
        r"(?:what )?you (?:actually |really )?(?:asked|wanted)(?: was| is)?|the (?:task|topic|"
        r"subject) (?:was|is))\b",
        own=True,
        anchored=True,
    ),
    cue(
        "when-you-asked",
        2,
        r"\b(?:when|whereas|while|but|and) (?:you|your question|the question|what you)(?: actually|"
        r" really| had| were|'d)* (?:asked|wanted|meant|was|were|is)\b|\binstead of (?:answering|"
        r"addressing|explaining|helping|your|the question|what you)",
        own=True,
    ),
    cue(
        "not-your-question",
        2,
        r"\b(?:not (?:at all )?(?:what you|the question you|your question|what i was asked|"
        r"what was asked|the topic|what i meant)|none of (?:this|that|it|which) (?:answers|helps you|"
        r"has (?:anything|any)|(?:is|was) (?:about|relevant|what|related|an? answer|your|even)|"
        r"concerns|addresses)|(?:isn't|wasn't|ain't|'s not) (?:at all |really |quite |actually |"
        r"even )?what (?:you|i was|was asked)\b|(?:doesn't|does not|didn't|did not|won't|hardly|don't|"
        r"isn't|not) (?:\w+ )?(?:answer\w*|address\w*|help\w*) (?:your|the|what|you\b)(?: (?:question|"
        r"asked|at all))?|nothing to do with (?:your|the|what|you)|no (?:answer|reply) to (?:your|the|"
        r"what))",
        own=True,
    ),
    cue(
        "back-to",
        2,
        rf"\b(?:(?:get|go|getting|going|come|coming|return|returning|let's get|turn|steer|circle|"
        rf"circling|jump|move|swing|brings? (?:me|us)|moving|now|anyway|and|so|but|right|okay|ok|"
        rf"^)[ ,]*(?:right )?(?:back )?(?:back|return|returning|on|now) ?(?:on )?to {QUESTION}|"
        rf"(?:return|returning|coming|going) to {QUESTION})",
        own=True,
    ),
    cue(
        "answer-question",
        2,
        rf"\b{WILL} {W_ADV}(?:answer|address|respond to|focus on|stick to|tackle|return to|get to|"
        rf"turn to|attend to|deal with|handle|re-?read|concentrate on|go back to|get back to|"
        rf"come back to|get back on|go back on) {QUESTION}",
        own=True,
    ),
    cue(
        "to-actually",
        2,
        r"(?:now,? )?to (?:actually|properly|really|finally) (?:answer|address) (?:your|the|what)",
        own=True,
        anchored=True,
    ),
    cue(
        "back-to-topic",
        1,
        r"(?:let me (?:get|go|come) )?back to (?:the )?\w+(?: \w+)?(?= *[.,:!;—–]|$)|\b(?:let me|"
        r"i should|i'?ll) (?:get|go|come|turn) back to \w+",
        anchored=True,
    ),
    cue(
        "refocus-bare",
        2,
        r"(?:focus|refocus|concentrate|stay on (?:topic|track)|on topic)(?= *[.!:]| *$)",
        own=True,
        anchored=True,
    ),
    cue(
        "what-nonsense",
        2,
        r"what (?:complete |utter |total |a load of |a pile of )?(?:nonsense|rubbish|gibberish|drivel|"
        r"(?:a )?mess|a muddle|a digression|a tangent)\b",
        anchored=True,
    ),
    cue(
        "as-for-question",
        1,
        r"(?:as (?:for|to) your (?:actual |real )?question|(?:now|right|ok|okay),? (?:for |"
        r"to )?your (?:actual |real )?question|the (?:actual|real|correct|right|true) (?:answer|"
        r"question|figure|value|number)\b)",
        own=True,
        anchored=True,
    ),
)
