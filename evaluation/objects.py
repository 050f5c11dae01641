"""The words by which English captions name the 80 object categories of COCO.

Category names are facts; the other words were written for this project, and are no copy of a
published table, so figures with them compare decoders with one another and not with a paper.
To extend it, add a word in its singular to a line of `OBJECTS`, or to `COMPOUNDS` a name that
contains such a word and means none of the 80. Plurals are made by `plurals`.

What a list of words cannot tell: the color orange from the fruit; "can bear", "sinks", "ties" as
verbs; a toy, a statue or an image of a thing from the thing; "no dog" from "a dog". Words that
mean too many other things are left out: bag, glass, light, plant, screen, seat, container, vessel,
notebook, pitcher, male, female. Where the published table has a word and means one thing by it,
the word names the same object here, also where people would disagree: "desk" is a dining table,
"street light" a traffic light, "goat" a sheep, "bagel" a donut, "pancake" a cake, "computer" a
laptop. `tests/test_objects.py` lists all that differ.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

OBJECTS = {
    "person": "person, human, man, woman, boy, girl, child, kid, baby, toddler, infant, teenager, "
    "adult, lady, guy, gentleman, individual, crowd, spectator, bystander, onlooker, pedestrian, "
    "passenger, commuter, traveler, tourist, shopper, customer, mother, father, mom, mum, dad, "
    "parent, son, daughter, brother, sister, grandmother, grandfather, grandchild, friend, bride, "
    "groom, player, baseball player, tennis player, soccer player, ball player, keyboard player, "
    "athlete, catcher, umpire, referee, skier, snowboarder, skateboarder, surfer, kite surfer, "
    "swimmer, runner, jogger, hiker, rider, cyclist, bicyclist, motorcyclist, biker, cowboy, "
    "driver, bus driver, taxi driver, truck driver, train driver, train conductor, pilot, sailor, "
    "chef, waiter, waitress, vendor, officer, policeman, policewoman, fireman, firefighter, "
    "soldier, worker, farmer, fisherman, businessman, businesswoman, doctor, nurse, teacher, "
    "student, photographer, musician, dancer, bus passenger, train passenger, baker, cop, skater, "
    "foreigner, caller, offender, coworker, trespasser, patient, politician, serviceman, thief, "
    "buyer, drinker, hunter, villager",
    "bicycle": "bicycle, bike, pushbike, mountain bike, push bike, unicycle, tricycle, trike, "
    "minibike",
    "car": "car, automobile, sedan, taxi, taxicab, cab, minivan, suv, jeep, hatchback, "
    "convertible, limousine, police car, taxi cab, station wagon, van, coupe, limo",
    "motorcycle": "motorcycle, motorbike, moped, scooter, motor bike, motor cycle, motor scooter, "
    "dirt bike",
    "airplane": "airplane, aeroplane, plane, aircraft, jet, jetliner, airliner, biplane, seaplane, "
    "air plane, jet plane, passenger plane, passenger jet, fighter jet, monoplane, airbus",
    "bus": "bus, minibus, school bus, tour bus, city bus, passenger bus, trolley",
    "train": "train, locomotive, tram, railcar, train car, rail car, train engine, subway train, "
    "subway car, passenger train, freight train, steam engine, train carriage, tramway, caboose",
    "truck": "truck, lorry, pickup, firetruck, semi-truck, pickup truck, pick-up truck, "
    "fire truck, fire engine, dump truck, tow truck, garbage truck, tractor trailer, truck bed, "
    "hauler",
    "boat": "boat, ship, sailboat, rowboat, motorboat, speedboat, houseboat, canoe, kayak, yacht, "
    "ferry, dinghy, barge, tugboat, sail boat, row boat, motor boat, speed boat, house boat, "
    "cruise ship, fishing boat, ferryboat, powerboat, lifeboat, paddleboat, riverboat, steamboat, "
    "sailboard, watercraft, catamaran, pontoon, schooner, skiff, trawler, freighter, battleship, "
    "steamship",
    "traffic light": "traffic light, traffic signal, stoplight, stop light, street light, "
    "streetlight",
    "fire hydrant": "fire hydrant, hydrant, fire plug",
    "stop sign": "stop sign",
    "parking meter": "parking meter",
    "bench": "bench, park bench, pew",
    "bird": "bird, seagull, gull, pigeon, dove, duck, duckling, goose, swan, parrot, owl, eagle, "
    "hawk, crow, raven, sparrow, hen, rooster, peacock, ostrich, pelican, penguin, flamingo, "
    "heron, stork, hummingbird, sea gull, parakeet, falcon, robin, finch, osprey, mallard, egret, "
    "quail, loon, woodpecker, chickadee, kingfisher, buzzard, willet, cormorant, gosling, "
    "pheasant, sandpiper, oriole, warbler, magpie, cockatiel, lorikeet, puffin, vulture, condor, "
    "macaw, peafowl, cockatoo, blackbird, bluebird, bluejay, cowbird, songbird, seabird, "
    "shorebird, waterbird, waterfowl, fowl",
    "cat": "cat, kitten, kitty, tomcat, house cat, tabby, feline, tabby cat",
    "dog": "dog, puppy, pup, doggy, hound, poodle, beagle, terrier, bulldog, dachshund, corgi, "
    "collie, husky, chihuahua, pug, dalmatian, labrador, german shepherd, golden retriever, "
    "bull dog, pit bull, doggie, mutt, canine, sheepdog, spaniel, cocker spaniel, retriever, "
    "greyhound, schnauzer, rottweiler, doberman, weimaraner, whippet, pitbull",
    "horse": "horse, pony, foal, mare, stallion, colt, racehorse, equine, palomino, clydesdale, "
    "bronco, bronc",
    "sheep": "sheep, lamb, ewe, goat, ram",
    "cow": "cow, cattle, bull, calf, ox, heifer, buffalo, bison, zebu, holstein",
    "elephant": "elephant",
    "bear": "bear, grizzly, polar bear, brown bear, black bear, grizzly bear, bear cub, panda, "
    "panda bear",
    "zebra": "zebra",
    "giraffe": "giraffe",
    "backpack": "backpack, rucksack, knapsack, schoolbag, back pack, school bag, book bag",
    "umbrella": "umbrella, parasol, beach umbrella",
    "handbag": "handbag, purse, hand bag, shoulder bag, tote bag, briefcase, wallet",
    "tie": "tie, necktie, bowtie, neck tie, bow tie",
    "suitcase": "suitcase, luggage, baggage, suit case",
    "frisbee": "frisbee, flying disc, flying disk",
    "skis": "ski",
    "snowboard": "snowboard, snow board",
    "sports ball": "ball, sports ball, soccer ball, tennis ball, beach ball, golf ball",
    "kite": "kite",
    "baseball bat": "bat, baseball bat",
    "baseball glove": "baseball glove, baseball mitt, catcher 's mitt, catcher 's glove",
    "skateboard": "skateboard, skate board",
    "surfboard": "surfboard, bodyboard, paddleboard, surf board, paddle board, boogie board, "
    "longboard, shortboard, skimboard, wakeboard",
    "tennis racket": "racket, racquet, tennis racket, tennis racquet",
    "bottle": "bottle, water bottle, wine bottle, beer bottle, baby bottle",
    "wine glass": "wine glass, wineglass, goblet, champagne glass, glass of wine, "
    "glass of champagne",
    "cup": "cup, mug, teacup, tea cup, coffee cup, coffee mug, paper cup, drinking glass, "
    "glass of water, glass of milk, glass of juice, glass of orange juice, glass of beer",
    "fork": "fork",
    "knife": "knife, penknife, butter knife, steak knife, pocketknife",
    "spoon": "spoon, teaspoon, tablespoon",
    "bowl": "bowl",
    "banana": "banana",
    "apple": "apple",
    "sandwich": "sandwich, hamburger, burger, cheeseburger, panini",
    "orange": "orange, tangerine, clementine",
    "broccoli": "broccoli",
    "carrot": "carrot, baby carrot",
    "hot dog": "hot dog, hotdog, frankfurter, corn dog, chili dog",
    "pizza": "pizza",
    "donut": "donut, doughnut, bagel",
    "cake": "cake, cupcake, cheesecake, cup cake, cheese cake, carrot cake, birthday cake, "
    "wedding cake, shortcake, coffeecake, pancake",
    "chair": "chair, armchair, stool, rocking chair, high chair, lawn chair, desk chair, "
    "computer chair",
    "couch": "couch, sofa, loveseat, settee, recliner, futon, chesterfield",
    "potted plant": "potted plant, houseplant, house plant, pot plant, potted flower, potted tree, "
    "potted palm",
    "bed": "bed, bunk bed",
    "dining table": "table, dining table, kitchen table, picnic table, desk, computer desk, "
    "office desk",
    "toilet": "toilet, urinal, commode, toilet bowl, toilet seat, lavatory, potty",
    "tv": "tv, television, tv set, television set, tv screen, flat-screen tv, flat screen tv, "
    "monitor, computer monitor, computer screen",
    "laptop": "laptop, macbook, laptop computer, notebook computer, apple laptop, computer, "
    "netbook, lenovo, apple computer",
    "mouse": "mouse, computer mouse",
    "remote": "remote, remote control, remote controller, tv remote, television remote, "
    "game controller",
    "keyboard": "keyboard, computer keyboard",
    "cell phone": "phone, cellphone, smartphone, iphone, cell phone, mobile phone, smart phone, "
    "telephone",
    "microwave": "microwave, microwave oven",
    "oven": "oven, stove, stovetop, cooktop, stove top, stove top oven, stovetop oven, pizza oven, "
    "toaster oven",
    "toaster": "toaster",
    "sink": "sink, washbasin, wash basin, bathroom sink, kitchen sink",
    "refrigerator": "refrigerator, fridge, freezer",
    "book": "book, textbook, cookbook, paperback",
    "clock": "clock, alarm clock, wall clock",
    "vase": "vase, flower vase",
    "scissors": "scissors",
    "teddy bear": "teddy bear, teddy, teddybear, stuffed bear, plush bear, stuffed teddy bear, "
    "stuffed toy bear, toy bear",
    "hair drier": "hair drier, hair dryer, hairdryer, hairdrier, blow dryer, blow drier",
    "toothbrush": "toothbrush, tooth brush",
}

COMPOUNDS = (
    "zebra crossing, train track, train station, train platform, train stop, bus stop, "
    "bus station, bus lane, bus shelter, bike lane, bike path, bike rack, bicycle lane, "
    "bicycle path, bicycle rack, cable car, car park, car wash, jet ski, boat dock, boat house, "
    "gravy boat, flower bed, garden bed, river bed, dog bed, cat bed, dog house, dog food, "
    "cat food, cat litter, bird house, bird cage, bird feeder, bird bath, bird nest, bird 's nest, "
    "rocking horse, sea horse, horse shoe, bull 's eye, koala bear, gummy bear, baby carriage, "
    "baby stroller, baby food, baby grand, baby crib, snow man, railroad tie, zip tie, ski slope, "
    "ski lift, ski resort, ski pole, ski boot, ski goggles, ski jacket, ski suit, ski mask, "
    "ski gear, ski run, ski trail, ball game, ball park, ball field, ball cap, ball gown, "
    "disco ball, kite surfing, bottle opener, bottle cap, cup holder, world cup, super bowl, "
    "fork lift, orange juice, apple juice, apple sauce, apple logo, pizza box, pizza cutter, "
    "crab cake, rice cake, cake stand, chair lift, wheel chair, table tennis, table lamp, "
    "desk lamp, table cloth, pool table, ping pong table, operating table, toilet paper, "
    "toilet brush, tv stand, tv show, television stand, television show, mouse pad, remote area, "
    "remote location, remote village, remote island, piano keyboard, computer game, "
    "computer tower, phone booth, telephone booth, telephone pole, phone number, phone line, "
    "pay phone, oven mitt, oven glove, sink hole, book shelf, book case, book store"
)

ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
UNNAMED = ("animal", "cub")  # animals that are none of the 80
AGES = ("baby", "adult", "mother", "father")  # of an animal, and then no person

IRREGULAR = {
    "person": "people",
    "child": "children",
    "grandchild": "grandchildren",
    "mouse": "mice",
    "goose": "geese",
    "ox": "oxen",
    "foot": "feet",
    "tooth": "teeth",
    "bus": "busses",
}


@dataclass(frozen=True)
class Vocabulary:
    """What turns the words of a caption into objects.

    Args:
        nodes: Word or compound, in its base form -> the object that it names.
        compounds: Words in their base form, joined by blanks -> the one word that they become,
            which need not name an object.
        forms: Inflected word -> base form; a word that is absent stays as it is.
    """

    nodes: Mapping[str, str]
    compounds: Mapping[str, str]
    forms: Mapping[str, str]


def names(line: str) -> list[str]:
    """The names of one line: "hot dog, hotdog" -> ["hot dog", "hotdog"]."""
    return line.split(", ")


def plurals(word: str) -> set[str]:
    """Plurals that a word may have, by rule and by `IRREGULAR`; some of them nobody writes."""
    made = {IRREGULAR[word]} if word in IRREGULAR else set()
    if word.endswith("man") and word != "human":
        return made | {word[:-2] + "en"}
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return made | {word + "es"}
    if word.endswith("y") and not word.endswith(("ay", "ey", "oy", "uy")):
        return made | {word[:-1] + "ies"}
    if word.endswith("fe"):
        made.add(word[:-2] + "ves")
    if word.endswith("f"):
        made.add(word[:-1] + "ves")
    if word.endswith("o"):
        made.add(word + "es")
    return made | {word + "s"}


def inflections(vocabulary: Iterable[str]) -> dict[str, str]:
    """Plural -> singular of each name's last word, where the plural is no word of the names."""
    vocabulary = list(vocabulary)
    known = {word for name in vocabulary for word in name.split()}
    last = {name.split()[-1] for name in vocabulary}
    return {form: word for word in sorted(last) for form in plurals(word) if form not in known}


def own() -> Vocabulary:
    """The vocabulary of this file."""
    words = {name: node for node, line in OBJECTS.items() for name in names(line)}
    nodes = {node: node for node in OBJECTS} | words
    animals = [name for node in ANIMALS for name in names(OBJECTS[node]) if " " not in name]
    compounds = {name: name for name in [*nodes, *names(COMPOUNDS)] if " " in name}
    compounds |= {f"{age} {animal}": animal for age in AGES for animal in (*animals, *UNNAMED)}
    return Vocabulary(nodes, compounds, inflections([*nodes, *compounds]))
