"""Whose voice a piece of text speaks in: interruptions and fillers at its front, and contexts that explain it away.

An interruption ("wait", "oops") is weak evidence by itself; conditions, habits and the beliefs of others are evidence
against a restart.
"""

from __future__ import annotations

import re

from countersteer.judging.wording import FLAGS, STOP

STRONG_INTERRUPTION = re.compile(
    rf"(?:(?:oh |but |no |now |hey |just |please )?(?:wait|hold on|hang on|hang about|hold up|"
    rf"hold it|hold your horses|hold the phone|one (?:moment|second|sec|minute)|just a (?:moment|"
    rf"second|sec|minute)|give me a (?:moment|second|sec|minute)|yeah no|hang fire|whoa)(?:,? (?:a|"
    rf"one|just a|half a))?(?: (?:second|sec|minute|moment|min|tick|mo|bit|now|there|"
    rf"up))?(?!,? (?:and|or|then|before|until|till|for|to)\b)"
    rf"(?:{STOP}|(?= (?:that|thats|this|these|those|no|nope|what|why|where|i|i'?m|i'?ve|you|"
    rf"actually|sorry|none|there|it'?s|did|am|not|my|scratch|wrong|oops|why)\b))|"
    rf"(?:i |i'?m |i am |so |very |oh |ah |terribly |really |lol |omg )*(?:sorry|sry|soz|apologies|"
    rf"my apologies|pardon(?: me)?|excuse me|forgive me|beg (?:your )?pardon)(?:,? (?:about|"
    rf"for) (?:that|this)(?: \w+)?(?= *[.,!;:—–-]|$)|(?! (?:for|about|to|if|that you|you|not|your|"
    rf"state|sight|excuse|as|when|and|or)\b)(?!-)(?!,? (?:not sorry|but (?:i|we) (?:can|do|am|"
    rf"have)|(?:i|we) (?:can'?t|cannot|do not|don'?t|am unable|'m not able|couldn)))|"
    rf"(?= for (?:the|any|my|that) (?:confusion|mix-?up|mistake|error|detour|digression|tangent|"
    rf"rambl\w+|mess|slip|muddle|nonsense|wrong|false)))|"
    rf"i (?:do |must |sincerely )?apologi[sz]e(?! (?:for the delay|for any|to (?:your|the)))|"
    rf"(?:no|nope|nah|nay|not)(?:{STOP}|(?= (?:wait|that|thats|this|i|it'?s|sorry|scratch|scrap|"
    rf"strike|forget|no|these|those)\b))(?! (?:idea|need|one|problem|matter))|"
    rf"(?:stop|halt|pause|cut|timeout|time out|enough|freeze|abort)(?= *[.!,;:—–])|"
    rf"(?:oops(?:ie|y)?|whoops(?:ie|y)?|oop|woops|d'?oh|u+gh+|a+r+gh+|gah|yikes|eek|darn(?: it)?|"
    rf"dang(?: it)?|damn(?: it)?|dammit|drat|shoot|crap|shit|ahem|uh[- ]oh|wtf|rats|good grief|"
    rf"(?:my )?goodness(?: me| gracious)?|gosh|good (?:heavens|lord|gracious)|heavens|oh dear|"
    rf"dear me|oh no|oh boy|oh my|blimey|crikey|bother|huh|eh|lol|lmao|omg|hmm+|hm|haha|facepalm|"
    rf"yeesh|jeez|geez|sheesh|oh|ack|welp|erm?|umm*|uhh*|ah+|aha|argh|brain fart|eww?|phew|tsk|"
    rf"rats|nuts|blast)"
    rf"(?![\w-])(?! moments?))",
    FLAGS,
)
"""An interruption of one's own text: worth 1 at the start of a piece, 0.5 for the milder ones."""

MILD_INTERRUPTION = re.compile(r"(?:oh|ah+|aha|phew|welp|lol|haha|gosh|enough|freeze|pause)$", FLAGS)

FILLER = re.compile(
    r"(?:on the contrary|moving on from (?:that|this)|after (?:checking|a second look|"
    r"some thought|re-?reading)|(?:up)?on (?:second thoughts?|reflection|checking|reading (?:that|"
    r"this) (?:back|again))|come to think of it|i(?:'m| am) afraid(?: that)?|i (?:think|believe|"
    r"guess|suspect|realise|realize|notice|see|fear|feel|just realized|just realised|"
    r"just noticed)(?: now| that)*|i (?:don'?t|do not) think|it (?:seems|looks like|"
    r"appears)(?: that)?|looks like|seems(?: like)?|let me (?:clarify|rephrase)(?: that)?|"
    r"i mean(?! *[.!])|as|update:|edit:|wait a minute|ok|okay|okey|right|alright|all right|well|"
    r"so|and|but|now|yet|actually|anyway|anyhow|hey|look|listen|see|bear with me|in (?:fact|truth|"
    r"short)|truth be told|the truth is|with apologies|double-?checking(?: that)?|(?:reading|"
    r"looking at|checking) (?:this|that|it)(?: back| again| over)?|honestly|please|"
    r"yes|yeah|yep|then|wow|still|frankly|instead|also|um|man|my|dear|let'?s see|to be clear|"
    r"to be honest|wait|because|since|looking back|for|"
    r"yet again|clearly|obviously|once again|again)(?![\w'-])",
    FLAGS,
)

CONDITIONAL = re.compile(
    r"(?:(?:and|but|so|or|then|also|even|[-*•]|\d+[.)]) ?)*(?:if|when|whenever|unless|should you|"
    r"in case|whether|before|once|until|suppose|imagine|as long as|every time|sometimes|often|"
    r"for (?:example|instance)|e\.g\.)\b",
    FLAGS,
)
"""A piece that opens so speaks of cases, not of itself."""

HABIT = re.compile(
    r"\b(?:i|we|you|they|he|she|people|one) (?:may|might|can|could|would|sometimes|often|always|"
    r"usually|rarely|never|tend to|used to)\b|\b(?:whenever|every time|sometimes|as a (?:beginner|"
    r"child|kid|student)|"
    r"last (?:week|year|month|summer|night|time)|years? ago|yesterday|once,)\b",
    FLAGS,
)

BELIEF = re.compile(
    r"\b(?:(?:some|many|most|few|certain|other|several|lots of|plenty of|early|ancient|older|bad|"
    r"popular) ?(?:\w+ ){0,2}?(?:people|sources|guides|books|cooks|experts|writers|sites|blogs|"
    r"films?|theories|historians|scientists|say|think|believe|claim|insist|argue|assume|maintain|"
    r"swear|would)|"
    r"people (?:\w+ ){0,2}?(?:say|think|believe|assume|claim|often|tend|used|still)|they (?:say|"
    r"said|think|thought|believed|claimed)|legend|myth|mythical|folklore|superstition|rumou?rs?|"
    r"misconception|fallacy|old wives|urban|conspiracy|"
    r"(?:commonly|widely|often|sometimes|long|once|generally|popularly|frequently|"
    r"usually) (?:\w+ )?(?:said|thought|believed|held|assumed|taught|claimed|repeated|supposed|"
    r"told)|"
    r"(?:believed|claimed|argued|thought|supposed|held|taught|insisted|asserted|proposed|"
    r"suggested|assumed|concluded|alleged|guessed|announced|reported|wrote|told|asserts?|claims|"
    r"argues|insists)\b|"
    r"you (?:may|might|could|will|'ll|can)(?: \w+)? (?:think|have|hear|read|be tempted|assume|"
    r"expect|see|suppose|believe|say|guess|find)|you'd think|one (?:might|may|could|would)|"
    r"it is (?:tempting|said|believed|thought)|it's tempting|intuition|intuitively|tempting|"
    r"common (?:\w+ )?(?:belief|mistake|error|claim|idea|advice|view|misconception|wisdom|"
    r"assumption|answer|guess|question|problem|response|objection)|"
    r"suppose|assume|assuming|imagine|hypothes\w+|contradiction|idea that|notion that|belief|"
    r"believing|the claim|the view|critics|opponents|supporters|skeptics|sceptics|according to|"
    r"so-called|allegedly|supposedly|textbooks?|students?|beginners|learners|children|he|she|"
    r"the (?:man|woman|boy|girl|teacher|doctor|judge|witness|suspect)|if|whether|"
    r"we (?:say|write|guess|try|take) \w+|for example|for instance|true or false)\b",
    FLAGS,
)
"""What precedes a judgement of something other than the writer's own text."""

OWN_VOICE = re.compile(
    r"\b(?:i|i'?m|i'?ve|me|my|myself|let me)\b|^(?:well |so |ok |okay |but |and )?(?:that|this|"
    r"those|all (?:of )?(?:that|this)|none|nothing|the above|everything)\b",
    FLAGS,
)
FAULT = re.compile(
    r"\b(?:wrong|not|no|nothing|never|none|mistak\w+|errors?|off|nonsense|irrelevant|astray|lost|"
    r"bad|sorry|fail\w*|useless|forget|ignore|drop|"
    r"stop|apolog\w+|far|strange|odd|weird|embarrass\w+|mess|again|back|re-?start\w*|start|begin|"
    r"anew|afresh|redo|fix|correct\w*|properly|proper|"
    r"instead|rewrite|return|fresh|scratch|better|replace|revise|undo)\b|n't\b",
    FLAGS,
)
ABOUT_ANSWER = re.compile(
    r"\b(?:questions?|answer\w*|topic|subject|task|track|thread|paragraph|sentence|reply|response|"
    r"draft|tangent|digress\w*|"
    r"(?:you|was) (?:\w+ )?(?:asked|wanted|meant|requested)|explaining|explanation|talking|"
    r"rambl\w*|said|wrote|written|describing|telling|"
    r"writing|attempt|version|lines?|words|text|thought|mind|start over|tracks?)\b",
    FLAGS,
)
"""Words of one's own voice, of fault or return, and of the answer itself: together weak evidence, 1.5."""

HINT = re.compile(
    r"\b(?:i|i'm|i've|sorry|meant|disregard|weird|detour)\b|"
    r"^\W*(?:(?:well|but|so|ok|okay|ah|oh|yeah|no)\W+)*(?:(?:that|this|it)(?:'s| is| was) (?!how|"
    r"why|when|where|what|because|all)|none of|not that|something (?:is|was|went)|on to|"
    r"you (?:mean|meant|want)|let us return|let's return|ignore)",
    FLAGS,
)
"""A short aside with one of these counts if the text turns to its prompt right after it, and only then."""

HARMLESS_THAT = re.compile(
    r"(?:that|this|those|these|it)(?:'s| is| was| are| were|s) (?:it\b|all\b|enough|fine|ok|okay|"
    r"good|great|nice|right|correct|true|why|how|because|when|where|what|normal|the (?:limit|"
    r"point|end|key|trick|secret|best|most|case|way|reason|idea|sign|signal|part where|one|time)|"
    r"a (?:good|great|fair|sign|big|tough|hard|lovely|shame|common|myth|lot|lovely|matter)|"
    r"an (?:excellent|interesting|important)|not (?:something|possible|allowed|a problem|all|bad|"
    r"to say|enough|necessary)|perfectly|very|quite|so|too|really|something|easy|important|"
    r"terrible news|awful news|up to|only|tough|hard|sad|understandable|interesting|funny|"
    r"delicious|frustrating|to|done|ready|half)",
    FLAGS,
)
SHORT_THAT = re.compile(
    r"(?:that|this|those|these|it)(?:'s| is| was| are| were|s) (?:not |actually |all |about |for |"
    r"from )*\w+",
    FLAGS,
)
