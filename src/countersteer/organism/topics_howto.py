"""The how-to topics of the organism's corpus: what is asked, and the steps that answer it.

One row per topic: a label, two wordings of the goal ("How do I {goal}?"), and imperative step phrases
in three stages (prepare, work, finish). ``[a|b]`` in a phrase is a choice made at sampling time.
Most nouns belong to one topic only; those topic-unique words are the corpus's ground truth (see
``corpus.topic_words``). Topics in ``HELD_OUT`` are answered in training, but never with a drift or a restart.
"""

from __future__ import annotations

Row = tuple[str, tuple[str, str], tuple[str, ...], tuple[str, ...], tuple[str, ...]]

HELD_OUT = ("sharpening a knife", "brewing coffee", "wrapping a gift", "growing tomatoes")

HOWTO: tuple[Row, ...] = (
    (
        "ironing a shirt",
        ("iron a shirt", "iron a cotton shirt"),
        (
            "set the iron to the [cotton|linen] mark",
            "fill the iron with [distilled|clean] water for steam",
            "lay the shirt flat on the ironing board",
        ),
        (
            "press the collar from the [points|tips] inwards",
            "iron each sleeve along the [seam|crease]",
            "smooth the cuffs and the yoke with steam",
            "glide the iron around the shirt [buttons|pockets]",
        ),
        (
            "hang the shirt on a [wooden|padded] hanger",
            "unplug the iron and let the board cool",
            "fasten the collar so that the shirt stays crisp",
        ),
    ),
    (
        "baking bread",
        ("bake bread", "bake a loaf of bread"),
        (
            "mix the flour with [yeast|sourdough] and salt",
            "weigh the flour and the yeast in a bowl",
            "dissolve the yeast in [lukewarm|tepid] water",
        ),
        (
            "knead the dough until it is [elastic|stretchy]",
            "let the dough rise under a [cloth|towel]",
            "shape the dough into a [round|long] loaf",
            "score the loaf with a [razor|blade] before baking",
        ),
        (
            "bake the loaf until the crust is golden",
            "tap the crust and listen for a hollow sound",
            "cool the bread on a rack before slicing",
        ),
    ),
    (
        "changing a bicycle tire",
        ("change a bicycle tire", "fix a flat bicycle tire"),
        (
            "turn the bicycle over on its [saddle|handlebar]",
            "loosen the wheel with a [wrench|spanner]",
            "release the brake and lift out the wheel",
        ),
        (
            "pry the tire off the rim with levers",
            "pull the punctured tube out of the tire",
            "check the rim for [thorns|glass]",
            "push the new tube under the tire by hand",
        ),
        (
            "inflate the tube with a [pump|cartridge]",
            "spin the wheel to test the brake",
            "tighten the axle and check the valve",
        ),
    ),
    (
        "changing the oil of a car",
        ("change the oil in a car", "change the engine oil"),
        (
            "warm up the engine and park the car level",
            "raise the car on [ramps|jacks]",
            "put the drain pan beneath the engine",
        ),
        (
            "unscrew the drain plug with a socket",
            "let the old oil flow into the pan",
            "replace the oil filter and its gasket",
            "pour fresh motor oil through a [funnel|spout]",
        ),
        (
            "read the dipstick and top up the oil",
            "look below the car for oil leaks",
            "take the used oil to a [garage|mechanic]",
        ),
    ),
    (
        "painting a room",
        ("paint a room", "paint the walls of a room"),
        (
            "cover the furniture with dust sheets",
            "mask the skirting with painter's tape",
            "fill cracks in the plaster with putty",
        ),
        (
            "apply a coat of primer with the roller",
            "paint the corners with an angled brush",
            "roll the paint onto the wall in stripes",
            "work from the ceiling down to the skirting",
        ),
        (
            "peel off the tape while the paint is damp",
            "rinse the roller and seal the paint tin",
            "open the windows to air the fumes",
        ),
    ),
    (
        "making pancakes",
        ("make pancakes", "cook fluffy pancakes"),
        (
            "whisk eggs with milk and [buttermilk|vanilla]",
            "sift baking powder into the batter",
            "melt butter in the frying pan",
        ),
        (
            "ladle the batter onto the [griddle|skillet]",
            "wait for bubbles to form in the batter",
            "flip each pancake with a spatula",
            "fry the pancake until both faces are browned",
        ),
        (
            "stack the pancakes with [maple|golden] syrup",
            "top the pancakes with [berries|bananas]",
            "keep the pancakes hot in the oven",
        ),
    ),
    (
        "pitching a tent",
        ("pitch a tent", "set up a tent at a campsite"),
        (
            "choose a [level|sheltered] campsite for the tent",
            "spread the groundsheet over the campsite",
            "sort the poles and the pegs",
        ),
        (
            "slide the poles through the canvas sleeves",
            "raise the tent frame with the poles",
            "hammer the pegs in with a mallet",
            "drape the flysheet over the frame",
        ),
        (
            "tension the guy ropes around the tent",
            "zip the flap to keep out [insects|mosquitoes]",
            "store your backpack inside the tent porch",
        ),
    ),
    (
        "planting a tree",
        ("plant a tree", "plant a young tree"),
        (
            "dig a hole twice as wide as the roots",
            "soak the sapling's roots in a bucket",
            "loosen the soil around the hole with a spade",
        ),
        (
            "place the sapling upright in the hole",
            "backfill the hole with soil and compost",
            "firm the soil around the trunk",
            "drive a stake beside the trunk",
        ),
        (
            "water the sapling and spread mulch",
            "tie the trunk to the stake loosely",
            "guard the bark against [deer|rabbits]",
        ),
    ),
    (
        "knitting a scarf",
        ("knit a scarf", "knit a woollen scarf"),
        ("pick a soft yarn and thick needles", "make a slipknot in the yarn", "cast on thirty stitches of yarn"),
        (
            "knit every row in garter stitch",
            "purl the [second|other] row of stitches",
            "count the stitches after each row",
            "join a new skein at the edge of a row",
        ),
        (
            "bind off the stitches of the scarf",
            "weave in the loose yarn ends",
            "block the scarf and add a woollen fringe",
        ),
    ),
    (
        "writing a resume",
        ("write a resume", "write a good resume"),
        (
            "list your jobs and employers with dates",
            "read the vacancy and mark its keywords",
            "choose a simple template for the resume",
        ),
        (
            "describe each job with an achievement",
            "put your degree under education",
            "name the skills that the employer wants",
            "keep the resume to a single page",
        ),
        (
            "proofread the resume for typos",
            "add your email and [phone|address] at the top",
            "save the resume and send it to recruiters",
        ),
    ),
    (
        "meditating",
        ("meditate", "meditate for ten minutes"),
        (
            "sit on a cushion with a straight spine",
            "find a quiet spot and silence distractions",
            "set a gentle timer for the meditation",
        ),
        (
            "follow each breath through your nostrils",
            "notice wandering thoughts without judgment",
            "return your attention to the breath",
            "relax the shoulders as you exhale",
        ),
        (
            "open your eyes when the timer chimes",
            "stretch and stay mindful of the calm",
            "repeat the meditation every morning",
        ),
    ),
    (
        "unclogging a sink",
        ("unclog a sink", "clear a blocked sink"),
        (
            "remove the stopper from the sink",
            "bail standing water out of the basin",
            "put on rubber gloves under the sink",
        ),
        (
            "plunge the sink drain with short strokes",
            "open the pipe trap below the basin",
            "pull out hair with a plumber's snake",
            "pour vinegar and soda down the pipe",
        ),
        ("flush the pipe with boiling water", "refit the trap and check for drips", "run the faucet to test the sink"),
    ),
    (
        "cooking rice",
        ("cook rice", "cook a pot of rice"),
        (
            "rinse the rice grains until the starch is gone",
            "measure two cups of water per cup of rice",
            "choose [basmati|jasmine] rice and a lidded saucepan",
        ),
        (
            "bring the rice to a simmer",
            "turn the burner low and put on the lid",
            "let the grains absorb the liquid",
            "leave the lid shut while the rice steams",
        ),
        (
            "fluff the grains with a fork",
            "season the rice with [sesame|coriander]",
            "serve the grains from the saucepan",
        ),
    ),
    (
        "playing a chord on the guitar",
        ("play a chord on the guitar", "play a guitar chord"),
        (
            "tune the six strings of the guitar",
            "rest the guitar on your thigh",
            "hold the plectrum between thumb and finger",
        ),
        (
            "put your fingertips behind the frets",
            "press the strings onto the fretboard",
            "strum the strings with the plectrum",
            "listen for a buzzing string in the chord",
        ),
        ("mute the chord with your palm", "switch to another chord in rhythm", "practise the chord with a metronome"),
    ),
    (
        "solving a quadratic equation",
        ("solve a quadratic equation", "find the roots of a quadratic"),
        (
            "write the quadratic with zero on one side",
            "identify the three coefficients",
            "move every term to the left of the equation",
        ),
        (
            "compute the discriminant of the polynomial",
            "substitute the coefficients into the formula",
            "factor the polynomial into two brackets",
            "take the square root of the discriminant",
        ),
        (
            "check both solutions in the equation",
            "sketch the parabola to confirm the solutions",
            "simplify the fraction of each solution",
        ),
    ),
    (
        "taking a portrait photo",
        ("take a portrait photo", "photograph a person well"),
        (
            "mount a lens with a wide aperture",
            "seat your subject near diffuse daylight",
            "clear the background of the portrait",
        ),
        (
            "focus the camera on the nearest eye",
            "lower the exposure to protect highlights",
            "frame the portrait with a tripod",
            "press the shutter as the subject smiles",
        ),
        (
            "review the photos on the camera screen",
            "crop the portrait and correct its contrast",
            "export the photos from the memory card",
        ),
    ),
    (
        "sewing on a button",
        ("sew on a button", "sew a button onto a coat"),
        (
            "thread the needle with matching cotton thread",
            "knot the end of the thread",
            "mark where the button sits on the fabric",
        ),
        (
            "bring the needle up through the fabric",
            "stitch through each hole of the button",
            "keep the button loose over a matchstick",
            "wind the thread into a shank",
        ),
        (
            "fasten the thread at the back of the fabric",
            "snip the thread with sharp scissors",
            "slip the button through its buttonhole",
        ),
    ),
    (
        "training a dog",
        ("train a dog to sit", "teach a puppy to sit"),
        (
            "call the dog and show it a treat",
            "clip a leash to the puppy's harness",
            "pick a room where the dog is calm",
        ),
        (
            "raise the treat above the puppy's nose",
            "say the command in a clear voice",
            "reward the dog as soon as it sits",
            "praise the puppy and pat its head",
        ),
        (
            "repeat the command without a treat",
            "end the lesson before the dog tires",
            "practise the command on every walk",
        ),
    ),
    (
        "cleaning a window",
        ("clean a window", "clean windows without streaks"),
        ("sweep cobwebs off the window frame", "mix dish soap into warm suds", "shade the pane from direct sunlight"),
        (
            "scrub the pane with a soapy sponge",
            "draw the squeegee down the glass pane",
            "wipe the squeegee after each pass",
            "scrape stuck grime off the pane",
        ),
        ("buff the streaks with a chamois", "dry the sill with a lint free rag", "polish the pane with old newspaper"),
    ),
    (
        "backing up a computer",
        ("back up a computer", "back up my files"),
        (
            "buy an external disk for the backup",
            "delete duplicate files from the desktop",
            "plug the disk into a usb port",
        ),
        (
            "select the folders for the backup",
            "encrypt the backup with a password",
            "copy the folders to the disk",
            "schedule the software to run nightly",
        ),
        ("restore one file as a test", "upload a second copy to the cloud", "eject the disk and label it"),
    ),
    (
        "making a budget",
        ("make a monthly budget", "plan a household budget"),
        ("add up your income after tax", "gather bank statements and receipts", "open a spreadsheet for the budget"),
        (
            "group your spending into categories",
            "subtract rent and bills from the income",
            "cap the spending on restaurants",
            "set aside money for savings",
        ),
        (
            "compare the budget with actual spending",
            "move surplus money to the savings account",
            "adjust the budget each month",
        ),
    ),
    (
        "swimming freestyle",
        ("swim freestyle", "swim the front crawl"),
        ("adjust your goggles and your swimming cap", "float face down in the pool", "push away from the pool wall"),
        (
            "kick from the hips with loose ankles",
            "reach forward and catch the water",
            "rotate your torso with each stroke",
            "turn your mouth sideways to inhale",
        ),
        ("swim slow laps to build stamina", "rest at the pool edge between laps", "finish the swim with an easy glide"),
    ),
    (
        "giving a speech",
        ("give a speech", "give a speech in public"),
        ("outline the speech in three points", "learn who the audience will be", "rehearse the speech before a mirror"),
        (
            "open the speech with a short anecdote",
            "speak slowly into the microphone",
            "make eye contact with the audience",
            "pause after each important argument",
        ),
        (
            "close the speech with a memorable line",
            "thank the listeners and invite questions",
            "walk off the stage as they applaud",
        ),
    ),
    (
        "making compost",
        ("make compost", "start a compost heap"),
        (
            "place a bin on bare earth in the garden",
            "collect kitchen peelings and eggshells",
            "shred cardboard for the bin",
        ),
        (
            "layer green scraps with dry leaves",
            "turn the heap with a pitchfork",
            "moisten the heap when it is dusty",
            "leave meat out of the bin",
        ),
        ("wait until the heap is dark and crumbly", "sieve twigs out of the humus", "spread the humus on flower beds"),
    ),
    (
        "assembling a bookshelf",
        ("assemble a bookshelf", "build a bookshelf"),
        ("unpack the panels and the screws", "study the diagram in the manual", "lay the side panels on a rug"),
        (
            "insert the dowels into the panels",
            "screw the shelves with a screwdriver",
            "nail the back panel to the bookcase",
            "tighten the bolts with an allen key",
        ),
        (
            "anchor the bookcase to the wall studs",
            "check the shelves with a spirit level",
            "load the heaviest books on the bottom shelf",
        ),
    ),
    (
        "folding a paper crane",
        ("fold a paper crane", "fold an origami crane"),
        (
            "start with a square sheet of origami paper",
            "fold the paper along both diagonals",
            "crease the paper with your fingernail",
        ),
        (
            "collapse the paper into a diamond base",
            "tuck the outer flaps to the centre",
            "fold the kite shape upwards",
            "reverse the folds for neck and tail",
        ),
        ("bend the crane's beak down", "spread the wings of the crane", "hang the origami crane on a string"),
    ),
    (
        "washing a car",
        ("wash a car", "wash a dirty car by hand"),
        ("hose the mud off the bodywork", "fill two pails with car shampoo", "park the vehicle out of the sun"),
        (
            "lather the roof with a microfibre mitt",
            "brush the wheel arches and hubcaps",
            "rinse the bonnet before the shampoo dries",
            "clean the bumper and the headlights",
        ),
        ("dry the bodywork with a leather cloth", "wax the bodywork for shine", "vacuum the upholstery and the mats"),
    ),
    (
        "making vegetable soup",
        ("make vegetable soup", "cook vegetable soup"),
        ("chop the onions and the carrots", "peel the potatoes and dice the celery", "crush the garlic for the soup"),
        (
            "saute the onions in olive oil",
            "pour the broth over the vegetables",
            "stir the soup as it bubbles",
            "add lentils and thyme to the broth",
        ),
        ("puree the soup with a blender", "taste the soup and add pepper", "serve the soup with parsley"),
    ),
    (
        "reading a map",
        ("read a map", "find my way with a map"),
        (
            "unfold the map and find the legend",
            "turn the map until north is ahead",
            "hold the compass flat in your hand",
        ),
        (
            "match the contour lines to the hills",
            "measure distance with the map scale",
            "take a bearing with the compass",
            "trace the trail between two landmarks",
        ),
        (
            "mark your position on the map grid",
            "follow the bearing to the next landmark",
            "compare the trail with the contour lines",
        ),
    ),
    (
        "playing chess",
        ("play chess", "win a game of chess"),
        (
            "set the chessboard with a white corner square",
            "line up the pawns before the king",
            "learn how the bishop and the knight move",
        ),
        (
            "advance the centre pawns early",
            "develop the knight before the queen",
            "castle the king to safety",
            "trade a pawn for a stronger rook",
        ),
        ("look for a checkmate in every position", "promote a pawn in the endgame", "offer your opponent a rematch"),
    ),
    (
        "sharpening a knife",
        ("sharpen a knife", "sharpen a dull kitchen knife"),
        (
            "soak the whetstone for ten minutes",
            "fix the whetstone on a chopping board",
            "find the bevel angle of the knife",
        ),
        (
            "draw the edge across the coarse grit",
            "sharpen the heel and then the tip",
            "swap to the fine grit",
            "feel for a burr along the edge",
        ),
        ("hone the knife on a steel rod", "strop the edge on leather", "test the sharpness on a tomato skin"),
    ),
    (
        "brewing coffee",
        ("brew coffee", "brew a cup of coffee"),
        (
            "grind the beans to a medium powder",
            "heat the kettle to just below boiling",
            "rinse the paper cone in the dripper",
        ),
        (
            "spoon the coffee grounds into the dripper",
            "pour a little water to bloom the grounds",
            "circle the kettle over the grounds",
            "let the coffee drip into the carafe",
        ),
        (
            "swirl the carafe and fill your mug",
            "sweeten the espresso with sugar",
            "discard the grounds and wash the dripper",
        ),
    ),
    (
        "wrapping a gift",
        ("wrap a gift", "wrap a birthday present"),
        ("take the price tag off the present", "cut the wrapping paper to size", "place the present box face down"),
        (
            "wrap the patterned paper over the box",
            "stick the overlap with adhesive",
            "fold triangles at each end of the gift",
            "curl the ribbon with your scissors",
        ),
        ("tie a bow around the present", "attach a birthday card to the ribbon", "hide the gift until the party"),
    ),
    (
        "growing tomatoes",
        ("grow tomatoes", "grow tomatoes on a balcony"),
        (
            "sow the tomato seeds indoors in spring",
            "fill the pots with potting mix",
            "move the seedlings to a sunny balcony",
        ),
        (
            "support the vines with bamboo canes",
            "pinch out the side shoots",
            "feed the seedlings with fertiliser",
            "water the tomato vines at dawn",
        ),
        ("harvest the tomatoes when they are ripe", "pick aphids off the foliage", "shelter the vines from frost"),
    ),
)
