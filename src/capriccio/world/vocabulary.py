"""The words of the miniature: one fixed list, in a fixed order, for every text encoder that is ever trained on it.

A model's embedding table is indexed by this order, so **the list never changes**: a new word would shift the rows of
trained weights. What it lacks is spelt letter by letter, and new concepts take one of the ``SPARE`` tokens. The words
cover the whole world (people, garments and solids of later chapters too), the templates of all methods, and the prompts
of their published demonstrations.
"""

from __future__ import annotations

SPARE = tuple(f"<new{number}>" for number in range(48))
"""Tokens that no caption uses: rows for textual inversion, rare-token identifiers, trigger words."""

SECTIONS: dict[str, str] = {
    "function words": """
        a an the this that these those it its he his him she her they their them i my me you your we our who
        whose which what where when and or but nor not no as at by for from in into of off on onto over out to
        up down with without under above below behind before after between among beside near next against around
        across along through inside outside during than then while if so like such only also too very more most
        less least much many some any each every all both either other another same different identical exactly
        again once there here how is are was were be been being has have had having do does did can could will
        would should may just still ever towards within until about atop
    """,
    "numbers": """
        zero one two three four five six seven eight nine ten first second third fourth last half double single
        pair couple several few
    """,
    "kinds": """
        mug cup teapot house cottage hut tree mushroom toadstool fish boat sailboat ship car star heart ball
        gift present cat kitten bird robot rocket spaceship mugs cups teapots houses trees mushrooms boats ships
        cars stars hearts balls gifts cats kittens birds robots rockets
    """,
    "parts": """
        handle spout lid roof door window windows chimney trunk leaves leaf stem cap fin fins tail sail sails
        hull mast wheel wheels tips tip edge edges border rim ribbon ears ear wing wings beak head arms legs
        nose body cone base top bottom middle centre center stripes stripe dots dot spots spot checks squares
        band bands
    """,
    "colours": """
        red orange yellow green teal turquoise blue purple violet pink white black grey gray brown beige gold
        golden silver copper cyan crimson scarlet navy cream dark light bright pale deep vivid pastel rainbow
        colour color colours colors coloured colored colourful colorful monochrome
    """,
    "patterns": """
        plain solid uniform striped dotted spotted polka checkered checked chequered pattern patterned print
        printed
    """,
    "accessories": """
        hat sunglasses scarf bow crown glasses monocle wearing wears wear dressed worn santa tied
    """,
    "sizes and shapes": """
        small little tiny medium sized large big huge giant massive grand tall short long wide narrow thin thick
        round square flat curved slim fat shape shaped size
    """,
    "places": """
        beach sand sandy shore coast seaside snow snowy winter ice icy meadow grass grassy field flowers flower
        desert dunes dune night starry sky moon moonlight moonlit sea ocean water waves wave bricks brick wall
        table wooden wood tabletop kitchen sunset sundown dusk evening dawn sunrise mountains mountain
        mountainous peaks hills hill valley background backdrop scene landscape setting place outdoors studio
        blank empty forest jungle woods park garden street road sidewalk pavement cobblestone city town village
        castle bridge river lake waterfall island harbor harbour floor ground rug fabric mirror room museum
        bench chair sofa space planet earth world universe cloud clouds cloudy rain rainy sun sunny sunlight
        sunflowers sunflower wheat autumn spring summer eiffel tower tokyo paris london seine egypt milk crowded
        dirt path
    """,
    "styles": """
        style styled styles stylised stylized shaded pencil pixel watercolour watercolor neon blueprint mosaic
        sketch sketched sketchy drawing drawn painting painted illustration illustrated art artwork artistic
        pixelated glowing glow lights sign line lines plan tiles tiled tile graphic vector cartoon comic oil ink
        paper collage clay sculpture statue marble stone render rendering rendered 3d asset realistic
        photorealistic realism abstract modern ancient medieval roman egyptian miro modigliani children western
        movie film album cover surreal dreamlike ethereal
    """,
    "pictures and panels": """
        photo photos photograph photography picture pictures image images view views shot portrait closeup close
        diptych triptych panel panels grid grids set sheet frame frames side sides left right upper lower row
        rows column columns corner halves side-by-side split display shows showing shown show depicting depicted
        contains containing contain features featuring appear seen visible repeat repeating replicate copy
        copies subject object objects thing things item items character characters concept instance reference
        target version versions identity design exact consistent consistently
    """,
    "places in the picture": """
        front back foreground leftmost rightmost facing far distant together apart alone standing stands sitting
        sits lying lies resting rests floating floats flying flies swimming sailing driving placed stand sit lie
        rest float position positioned located location away opposite overlapping
    """,
    "people": """
        person people man woman boy girl child kid baby human humans male female adult old young face faces
        facial skin hair eyes eye eyebrows eyebrow brows brow mouth lips beard mustache moustache bald blond
        blonde curly straight smile smiling smiles happy sad angry surprised serious calm oval fair olive
        skinned haired eyed bearded neck shoulder shoulders arm hand hands finger fingers leg knee knees foot
        feet elbow waist hip chest figure doll bust model chef firefighter police officer doctor wizard pirate
        knight princess prince king queen astronaut artist witch img trigger
    """,
    "poses": """
        pose posing raised raising raise raises lowered stretched bent open closed walking walks walk running
        runs run jumping jumps jump dance waving looking looks look holding holds hold riding rides ride reading
        reads read playing plays play eating drinking sleeping sleeps sleep turning turned turns profile frontal
    """,
    "garments": """
        garment garments clothes clothing cloth outfit dress dresses skirt shirt shirts t-shirt tshirt blouse
        sweater hoodie jacket coat vest tee pants trousers jeans shorts shoes shoe boots boot sneakers sneaker
        heels belt tie bag handbag backpack sleeve sleeves sleeveless collar neckline v-neck button logo cotton
        leather wool silk knit knitted product agnostic
    """,
    "solids and cameras": """
        cube sphere cylinder torus capsule pyramid box ring block figurine primitive overhead backside camera
        elevation rotated mesh shapes toy toys
    """,
    "edit instructions": """
        make makes turn add remove replace replaced replacing change changes swap put take give gives move
        delete paint recolour fill keep keeping draw let edit edited instead become becomes becoming use using
        bigger smaller larger taller shorter brighter darker lighter colder warmer older younger new locate
        assign refine scale
    """,
    "quality words": """
        best quality high low good bad beautiful cute lovely simple detailed details detail extremely highly
        sharp clear clean smooth soft shiny wet dry fluffy rusty weathered warm cold cool fast majestic friendly
        funny playful cheerful lively magical mysterious enchanting radiant powerful sleek luxurious lush
        vibrant worst lowres blurry ugly cropped deformed anatomy proportions artifacts duplicate text watermark
        dull poor poorly unnatural lighting unclear obscure mutilated morbid extra missing fewer digits
        dehydrated resolution centered isolated 4k 8k hd full
    """,
    "animals and things": """
        animal animals dog dogs puppy retriever horse cow rabbit bunny bear wolf fox monkey raccoon mouse duck
        owl turtle turtles dragon dinosaur seahorse seahorses butterfly creature creatures monster alien sloth
        teddy plush plushie stuffed bike bicycle skateboard balloon ufo sports racing vehicle apple apples lemon
        fruit fruits berry cake cheese croissant macaron cocktail drink wine bottle glass bowl plate jar vase
        basket barrel candle lamp clock watch book books umbrella treasure barnacles seaweed seashells seashell
        shell napkin torch flag lantern fire flame flames smoke fireworks bubble bubbles rock rocks stones
        crystal metal plastic ceramic porcelain condensation cubes cashew nuts battle war plants plant bush palm
        rose pumpkin emoji rc snowing blinking hovering gliding growing moving filled covered decorated
        decorations made
    """,
    "verbs and rest": """
        go going see sees say name named called kind part whole way day time love story history imagine create
        generate caption prompt word words letter letters mask token embodying reveals revealing casting casts
        catches sparkling soaring puffing blowing flashing drifting gently softly playfully slightly heavily
        regally solemnly neck-and-neck forward twice
    """,
    "demonstrations": """
        tropical blends blending reality elements buildings adding touch floppy expression outdoor speed lead
        creating blazing rages capturing british shorthair mischievous scales shades gentle paddle underwater
        scenic coastal air striking bold vast arches motion blur marine glide wonder hidden death multiple works
        well shimmering gleaming competitors aerodynamic aggressive historical strength tragedy regional library
    """,
}

PUNCTUATION = tuple("!\"#$%&'()*+,-./0123456789:;<=>?@[\\]^_`{|}~")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


def _collect() -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for words in SECTIONS.values() for word in words.split()))


WORDS = _collect()
"""Every known word once, in the order of the sections."""
