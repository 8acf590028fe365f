"""Parts of English that restart language is built from, as pieces of regular expressions.

Every cue in `cues_fault.py` and `cues_return.py` is put together from these: who speaks of what (`OWN`, `DEM`), how
it is judged (`BAD_STRONG`, `NOT_STRONG`), how a new start is announced (`WILL`, `START`, `AGAIN`), and what it goes
back to (`QUESTION`). Nothing here repeats without a bound, and cues see short pieces of text only.
"""

from __future__ import annotations

import re

FLAGS = re.IGNORECASE
STOP = r"(?= *(?:[,.!?:;…—–()\[\]*_~]|$)| +-|--)"
"""What follows a word that stands alone: punctuation or the end."""

ADV = (
    r"(?:(?:all|also|so|just|quite|rather|pretty|even|still|really|very|simply|clearly|obviously|"
    r"again|too|now|at all|"
    r"way|far|kind of|sort of|a bit|a little|nowhere near|not even|of course|in fact|by the way|\w{3,14}ly) ){0,3}"
)
BE = (
    r"(?:is|was|are|were|'s|'re|s|has been|had been|have been|will be|must be|should be|may be|seems?|seemed|looks?|"
    r"sounds?|sounded|feels?|became|came out|went|has gone|had gone|'s gone|have gone|got|turned out|ended up|reads)"
)
NOT = (
    r"(?:(?:is|was|are|were|does|do|did|has|had|have|could|would|ca|wo)n'?t(?: be)?|"
    r"(?:is|was|are|were|does|do|did|has|have|can|could|would) not(?: be)?|cannot(?: be)?|'s not|'re not|s not|"
    r"(?:could|can|would) hardly be|(?:could|can) (?:\w+ly )?(?:not|never) be)"
)
OWN_NOUN = (
    r"(?:answers?|information|info|paragraphs?|sentences?|sections?|parts?|lists?|repl(?:y|ies)|"
    r"response|draft|table|tag|function|code|"
    r"explanation|text|passage|version|poem|verse|calculation|figures?|result|formula|recipe|line|statement|claim|"
    r"advice|bit|examples?|attempts?|paragraph|summary|description|tangent|detour|digression|snippet|definition|"
    r"translation|solution|number|date|name|outline|story|letter|email|message|start|beginning|steps?|instructions|"
    r"arithmetic|maths?|reasoning|derivation|proof|conversion|query|command|stuff|business|thing|opening|output)"
)
SAY = (
    r"(?:said|say|wrote|written|write|described|gave|given|told|explained|claimed|stated|typed|mentioned|posted|put|"
    r"listed|posted|suggested|produced|had|have)"
)
OWN = (
    rf"(?:(?:none|most|much|all|half|every bit|any|both|some) of (?:that|this|it|those|these|the above|what i \w+)|"
    rf"(?:everything|nothing|anything|what|all)(?: that)? (?:i|i've|i have|i had|i was|"
    rf"i just)\b(?: just| \w+ly)? ?{SAY}?(?: above| before| so far| there| just now| earlier)?|"
    rf"what (?:came|went) before|(?:the|everything|all) (?:above|preceding|foregoing)|"
    rf"(?:the|my|that|this|those|these) (?:(?:\w+|above|previous|last|first|preceding|whole|"
    rf"entire) ){{0,2}}?{OWN_NOUN}"
    rf"(?: (?:above|before|so far|there|just now|i (?:just )?{SAY}))?)"
)
DEM = r"(?:all (?:of )?(?:that|this)|that last (?:bit|part|one|line)|that one|that|this|those|these|it)"
TASK = (
    r"(?:question|topic|subject|task|point|prompt|request|query|matter(?: at hand)?|issue|problem|thread|track|"
    r"assignment|brief|point at hand|thing you asked|original \w+|actual \w+)"
)
ASKED = r"(?:ask(?:ed|ing)?|want(?:ed)?|request(?:ed)?|need(?:ed)?|mean(?:t)?|after|look(?:ed|ing))"

BAD_STRONG = (
    r"(?:wrong|incorrect|inaccurate|mistaken|nonsens\w*|gibberish|rubbish|garbage|drivel|gobbledygook|balderdash|"
    r"bogus|baloney|hogwash|garbled|irrelevant|unrelated|beside the point|"
    r"off(?: the)? ?-?(?:topic|track|subject|mark|"
    r"base|piste|course|point|rails)|out of place|to pieces|sideways|astray|haywire|"
    r"off (?:on a|at a) tangent|a (?:complete |total )?(?:tangent|digression|detour|non sequitur|mix-?up|muddle|mess|"
    r"jumble|slip|blunder|brain ?fart)|back ?to ?front|the wrong \w+|upside down|embarrassing|useless|"
    r"no use|no good|no help|not (?:right|correct|it|what|an answer|about|helpful|relevant|"
    r"on topic|the (?:right|answer|question|"
    r"topic|point|subject))|"
    r"(?:something|someone|somewhere|somebody) else|(?:an ?other|a(?: \w+)? (?:different|separate)) "
    r"(?:\w+ )?(?:subject|topic|thing|question|matter|story|issue|animal|person|place)|"
    r"(?:about )?(?:a|an|the) (?:\w+ )?(?:other|different|wrong|unrelated) \w+|"
    r"nothing to do with|out by|not for|(?:no|little) relevance|no relation|no bearing|no connection|for the wrong|"
    r"about (?:the wrong|something else|another)|badly|to be replaced|be replaced)"
)
BAD_WEAK = (
    r"(?:false|untrue|a mistake|an error|a typo|no answer|not true|confus(?:ed|ing)|a lie|silly|stupid|absurd|"
    r"ridiculous|impossible|weird|odd|strange|bizarre|misleading|unhelpful|terrible|awful|off|dreadful|bad|horrible|"
    r"a lie|an accident|unclear|messy|a disaster|not good|no|out|contradict\w*)"
)
FOLLOW = (
    r"(?= *(?:[.,!?:;…—–)\]*_~]|$)| -| (?:and|so|but|because|since|here|there|i|let|for|again|in|"
    r"of|on|sorry|as|the|your|you|from|this|that|altogether|lol|entirely|too|\w+ly|with|a|about|"
    r"my|to|what|at|also|either|by)\b(?! (?:if|when|only))(?<!only))"
)
NOT_STRONG = (
    rf"(?:(?:(?:seem|sound|look|feel)(?: to be| like)? )?right|correct|accurate|what (?:you|i|was|"
    rf"we|is)\b|it\b{STOP}|an? (?:answer|reply)|about|relevant|related|on[- ]topic|"
    r"answer\w*|address\w*|make (?:any |much )?sense|belong|help(?: you|ful)?\b|concern|have anything to do|"
    r"have any (?:bearing|relevance)|the (?:right|answer|question|topic|correct|point|subject|"
    r"thing|one|way to answer)|"
    r"respond\w*|even (?:close|about|the|an answer|related)|reverse|actually (?:answer|do|help))"
)
NOT_WEAK = r"(?:true|work|add up|hold up|good|quite|really|add|fit|help|the case|hang together)"
HAS_BAD = (
    rf"(?:(?:ha[sd]|have|had) {ADV}(?:nothing|no (?:place|bearing|relevance|connection|relation|"
    rf"business)|little) ?\w*|"
    r"ma(?:de|kes?) (?:\w+ ){0,2}?(?:no|little|zero|absolutely no) sense|"
    r"went (?:\w+ ){0,2}?(?:wrong|astray|off|sideways|to pieces|awry)|"
    r"gone (?:\w+ ){0,2}?(?:wrong|astray|off|sideways|awry)|"
    r"answers? (?:the wrong|another|a different|nothing|no)\b|miss(?:ed|es) the (?:point|mark)|miss(?:ed|es) your|"
    r"(?:belongs?|belonged) (?:\w+ )?(?:elsewhere|somewhere else|to|in) ?|"
    r"came out (?:\w+ )?(?:wrong|garbled|backwards?)|"
    r"answers? (?:your question )?(?:not at all|none)|must be replaced|should be (?:replaced|"
    r"ignored|disregarded|deleted)|"
    r"can be (?:ignored|disregarded)|got (?:away from me|mangled|garbled|mixed up|muddled|out of hand)|"
    r"wander(?:ed|s) off|went nowhere|fell apart|is going (?:badly|wrong|nowhere|off)|"
    r"'s going (?:badly|wrong|nowhere))"
)

AGAIN = (
    r"(?:over|again|afresh|fresh|anew|once more|once again|from scratch|from zero|from the (?:top|"
    r"beginning|start|first)|"
    r"over again|one more time|a second time|properly|back at the (?:top|start|beginning)|with (?:a )?clean slate)"
)
START = (
    r"(?:re-?start|re-?begin|start|begin|try|re-?try|redo|re-?do|rewrite|re-?write|redraft|"
    r"recalculate|recompute|reanswer|"
    r"re-?answer|re-?work|take (?:it|this|that)|do (?:it|this|that)|write (?:it|this|that)|"
    r"answer(?: (?:it|this|that|you|your question|the question))?|go|"
    r"(?:start|begin|try|do|take|answer|write) (?:this|that|the|it|my|your) (?:\w+ )?"
    r"(?:answer|explanation|thing|one|question|list|reply|sentence|poem|whole thing|task)?|"
    r"(?:have|take|make|give (?:it|this|that|you)) (?:another|a second|a fresh|a new|one more|a better) "
    r"(?:go|try|attempt|shot|stab|start|run|crack|answer|one|pass)?)"
)
WILL = (
    r"(?:let me|lemme|let's|lets|let us|i'?ll|i will|i shall|i'?d (?:better|like to|rather)|"
    r"i had better|i(?: really)? "
    r"(?:need|ought|want|have|wish) to|i must|"
    r"i should|i'?m (?:going to|gonna|about to)|i am going to|allow me to|permit me to|time (?:to|for me to)|gotta|"
    r"i'?ve got to|i'?m|i am|please let me|may i|can i|might i|if i may|i can|better(?: to)?|best(?: to)?)"
)
W_ADV = (
    r"(?:(?:please|just|now|actually|instead|quickly|therefore|then|really|first|simply|rather|"
    r"try to|try and|at once|immediately|at least|also|go ahead and|\w{3,12}ly) ){0,3}"
)
QUESTION = (
    rf"(?:what you (?:actually |really |in fact )?(?:{ASKED}|needed)\b(?: (?:me )?(?:about|for|to know))?|"
    rf"(?:the|your|this)(?: (?:actual|real|original|proper|very|initial|first))? {TASK}\b(?: you \w+)?|"
    r"(?:the|your) actual \w+|topic|track|task|"
    r"(?:the|your) (?:beginning|start)|the top|square one|where (?:i|we) (?:started|was|were))"
)
