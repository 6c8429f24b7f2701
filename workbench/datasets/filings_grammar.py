"""The wording of the `filings` dataset: sections, their sentences, and the words that fill them.

A name in braces is a slot of `SLOTS`. `{figure}` and `{mark}` belong to the generator: the figure that a
question asks for, and a name of three words that no other section has. No sentence may name a company, a
quarter or a year, nor use a word of `FORMS`, which are part of company names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One section. Only those with `keys` are asked about.

    `keys` are sentences that state `{figure}` and say nothing of company and period; `question` asks for
    it by `{company}` and `{period}`. `marked` pairs a sentence that states another figure, that
    of `{mark}`, with the question that asks for it by that name alone. The name stands in it twice, which
    keeps the question easy for an embedding that weighs the whole chunk. `fillers` are as many as a prime number, so
    that a walk over them by any stride repeats none.
    """

    heading: str
    fillers: tuple[str, ...]
    keys: tuple[str, ...] = ()
    question: str = ""
    marked: tuple[tuple[str, str], ...] = ()
    unit: str = ""


ASKED = (
    Section(
        "Revenue",
        (
            "Sales of {goods} {grew} by {percent}, while prices in {area} were held at the level of a year earlier.",
            "Demand in {area} {fell} by {percent} after {cause}, and customers moved their orders to later months.",
            "The company sold {count} units of {goods}, and discounts took {percent} of the list price on average.",
            "Changes of exchange rates lowered the figure by {money}, chiefly through the accounts kept in {area}.",
            "The {number} largest customers stood for {percent} of all sales, {somewhat} more than a year earlier.",
            "Repeat business with buyers of {goods} {grew}, helped by {measure} and by deliveries that came on time.",
            "Income from service and spare parts {grew} by {percent} and came to {money} at the end of the period.",
        ),
        (
            "Revenue for the period came to {figure}, against {money} a year earlier.",
            "The company reported revenue of {figure} for the period, a change of {percent} on the year.",
            "In the period the company booked {figure} of revenue, {somewhat} above what had been planned.",
        ),
        "How much revenue did {company} report for {period}?",
        (
            (
                "The product line {mark} brought in {figure}, and {mark} now enters its {ordinal} year.",
                "How much did the product {mark} bring in?",
            ),
            (
                "Licences of {mark} were worth {figure} in all, and {mark} is sold in {area} too.",
                "What were licences of {mark} worth?",
            ),
        ),
        "money",
    ),
    Section(
        "Operating costs",
        (
            "Energy for the plants in {area} cost {percent} more, since {cause} pushed up what suppliers charged.",
            "Freight of {goods} {fell} by {percent}, because {number} routes were merged and lorries ran fuller.",
            "Wages made up {percent} of the total, {somewhat} less than before, as overtime was cut in {area}.",
            "Raw materials for {goods} came to {money}, and {number} supply agreements were negotiated afresh.",
            "A programme of {measure} lowered outlays by {money} and is expected to run for {number} more months.",
            "Rent and insurance {grew} by {percent} after the warehouse in {area} was taken over in full.",
            "Write-downs on unsold {goods} amounted to {money}, the larger part of it caused by {cause}.",
        ),
        (
            "Operating costs for the period amounted to {figure}, {percent} of them fixed.",
            "The company spent {figure} on running its operations in the period, after {money} a year earlier.",
            "All operating costs together reached {figure} in the period, {somewhat} below the budget.",
        ),
        "What were the operating costs of {company} in {period}?",
        (
            (
                "Closing the workshop {mark} required {figure}, since {mark} had {number} years of lease left.",
                "What did it take to close the workshop {mark}?",
            ),
            (
                "Repairs at the depot {mark} came to {figure}, and {mark} reopens in {number} weeks.",
                "What was paid for repairs at {mark}?",
            ),
        ),
        "money",
    ),
    Section(
        "Staff",
        (
            "In {area} the company hired {number} engineers for {goods} and let {number} temporary contracts run out.",
            "Sick leave {fell} to {percent} of working days, a change that the board puts down to {measure}.",
            "Pay {grew} by {percent} under the agreement with the staff council, which holds for {number} months.",
            "Some {percent} of the staff work in {area}, where {cause} made it harder to fill open posts.",
            "Turnover among those who handle {goods} {fell}, and the average stay is now {number} years.",
            "Training took {count} hours in all, most of it for {measure} and for the safe handling of {goods}.",
            "Women hold {percent} of the posts with duties of leadership, {somewhat} more than a year earlier.",
        ),
        (
            "At the end of the period the company employed {figure} people, {number} of them apprentices.",
            "The workforce stood at {figure} people when the period closed, a change of {percent} on the year.",
            "The company counted {figure} people on its payroll at the close of the period.",
        ),
        "How many people did {company} employ at the end of {period}?",
        (
            (
                "The training scheme {mark} was finished by {figure} people, and {mark} goes on in {area}.",
                "How many people finished the training {mark}?",
            ),
            (
                "The night shift {mark} is worked by {figure} people, and {mark} starts at {number}.",
                "How many people work the shift {mark}?",
            ),
        ),
        "count",
    ),
    Section(
        "Order book",
        (
            "New orders for {goods} {grew} by {percent}, and {number} framework agreements were renewed early.",
            "Customers in {area} cancelled orders worth {money}, naming {cause} as the reason in most cases.",
            "The average order for {goods} runs for {number} months, {somewhat} longer than a year earlier.",
            "About {percent} of what is on order will be delivered within {number} months, the rest after that.",
            "Tenders for {goods} in {area} were won in {number} cases and lost in {number}, chiefly on price.",
            "Advance payments received from buyers of {goods} came to {money}, a change of {percent} on the year.",
            "Lead times {fell} to {number} weeks thanks to {measure}, although {cause} weighed on some deliveries.",
        ),
        (
            "Orders on hand were worth {figure} at the end of the period.",
            "The order book closed the period at {figure}, after {money} a year earlier.",
            "At the close of the period the company held orders of {figure}, {percent} of them from abroad.",
        ),
        "How large was the order book of {company} at the end of {period}?",
        (
            (
                "The contract {mark} is worth {figure}, and work on {mark} takes {number} months.",
                "What is the contract {mark} worth?",
            ),
            (
                "The harbour project {mark} adds {figure} to it, and {mark} calls for {number} cranes.",
                "How much does the project {mark} add to orders?",
            ),
        ),
        "money",
    ),
    Section(
        "Investment",
        (
            "A line for {goods} in {area} was rebuilt, which raised its output by {percent} and cut its waste.",
            "Of the total, {percent} went into buildings and the rest into machines, software and {measure}.",
            "Spending on the site in {area} was put off by {number} months on account of {cause}.",
            "The board has released a further {money} for {goods}, to be spent over the next {number} months.",
            "Depreciation {grew} to {money}, since the new machines for {goods} are written off over {number} years.",
            "Research on {goods} took {money}, and {number} patents were filed, {somewhat} more than usual.",
            "Grants for {measure} covered {percent} of the outlay in {area}, and {number} more were applied for.",
        ),
        (
            "The company invested {figure} in plant and equipment during the period.",
            "Capital spending in the period was {figure}, against {money} a year earlier.",
            "During the period {figure} was put into plant and equipment, {percent} of it for replacement.",
        ),
        "How much did {company} invest in plant and equipment in {period}?",
        (
            (
                "The new hall {mark} was finished for {figure}, and {mark} now stores {goods}.",
                "For how much was the hall {mark} finished?",
            ),
            (
                "The furnace {mark} was relined for {figure}, so that {mark} lasts {number} more years.",
                "What was the price of relining {mark}?",
            ),
        ),
        "money",
    ),
    Section(
        "Financing",
        (
            "Interest paid came to {money}, an average rate of {percent}, {somewhat} more than a year earlier.",
            "Stocks of {goods} tied up {money}, and customers in {area} took {number} days longer to pay.",
            "Cash {fell} by {percent} after {cause}, but the agreed limits with {number} banks were not touched.",
            "The company sold claims on buyers of {goods} for {money} and used the proceeds for {measure}.",
            "Loans that fall due within {number} months make up {percent} of the total and are to be renewed.",
            "A property in {area} was sold and leased back over {number} years, which brought in {money}.",
            "The equity ratio {grew} to {percent}, and the covenant on interest cover was met with room to spare.",
        ),
        (
            "Net debt stood at {figure} at the end of the period.",
            "Borrowings less cash amounted to a net debt of {figure} when the period closed, after {money} before.",
            "The company ended the period with net debt of {figure}, {percent} of it at fixed rates.",
        ),
        "What was the net debt of {company} at the end of {period}?",
        (
            (
                "The bond {mark} raised {figure} in {area}, and {mark} runs for {number} years.",
                "How much did the bond {mark} raise?",
            ),
            (
                "The credit line {mark} has been drawn to {figure}, and {mark} is open for {number} months.",
                "How far is the credit of {mark} drawn?",
            ),
        ),
        "money",
    ),
)

PLAIN = (
    Section(
        "Segments",
        (
            "The business with {goods} {grew} by {percent}, and its margin was helped by {measure} in {area}.",
            "In {area} the segment lost {money} before interest, since {cause} kept {number} sites idle for weeks.",
            "Sales of {goods} to the public sector {fell} by {percent}, and {number} tenders were decided elsewhere.",
            "Services around {goods} are run from {area} and now bring in {percent} of the segment's result.",
            "The smallest segment, which makes {goods}, came out {somewhat} ahead of plan with {money}.",
            "Transfers of {goods} between segments amounted to {money} and are priced as among strangers.",
            "Two units in {area} were merged for the sake of {measure}, at a single charge of {money}.",
        ),
    ),
    Section(
        "Outlook",
        (
            "The board expects sales of {goods} to change by about {percent} over the next {number} months.",
            "Should {cause} last, the result could turn out {somewhat} weaker in {area} than assumed so far.",
            "Prices of {goods} are expected to settle, with a swing of no more than {percent} either way.",
            "The plan rests on {measure}, on {number} openings in {area}, and on freight that becomes no dearer.",
            "A dividend of {percent} of the result is intended, if stocks of {goods} can be brought down to {money}.",
            "For {area} the company foresees {number} lean months, followed by orders for {goods} as in the past.",
            "Spending on {measure} will stay near {money}, and no posts in {area} are to be added for now.",
        ),
    ),
    Section(
        "Risks",
        (
            "The company depends on {number} suppliers of {goods}, and {cause} could stop its lines within days.",
            "A rise of rates by one point would add {money} to interest, of which {percent} is hedged.",
            "In {area} a storm or flood could shut the store of {goods} for {number} weeks, at a loss of {money}.",
            "Attacks on computers {grew} by {percent}, and {measure} was brought forward by {number} months.",
            "Rules on {goods} may become stricter in {area}, which would call for {money} of new equipment.",
            "Losses from unpaid bills {fell} to {percent} of sales, though {cause} may turn that around again.",
            "Buyers of {goods} can leave at {number} weeks' notice, and the {number} largest are in one trade.",
        ),
    ),
    Section(
        "Legal matters",
        (
            "A buyer of {goods} claims {money} for late delivery, and the court in {area} hears it in {number} months.",
            "The tax office in {area} has questioned {number} returns, for which {money} was set aside.",
            "A dispute over a patent on {goods} was settled, and the royalty is {percent} of the sales concerned.",
            "Former tenants of a site in {area} ask for {money}, blaming {cause}; the company denies the claim.",
            "The inquiry into prices of {goods} was closed with no fine, after {number} months of hearings.",
            "Permits for {area} were renewed for {number} years, on condition of {measure} at the site.",
            "Provisions for warranties on {goods} were raised by {percent} to {money}, {somewhat} above the past need.",
        ),
    ),
)


def _listed(text: str, separator: str = ", ") -> tuple[str, ...]:
    return tuple(text.split(separator))


SLOTS: Mapping[str, tuple[str, ...]] = {
    "area": _listed(
        "the north, the south, the east, the west, the coastal region, the highlands, the river valley, the capital,"
        " the lake district, the border towns, the islands, the inland ports, the home market, the export markets,"
        " the free zone, the mining belt"
    ),
    "goods": _listed(
        "pumps, bearings, ceramic tiles, cable drums, packaging film, garden tools, bicycle frames, optical glass,"
        " wall paint, roof panels, kitchen scales, water meters, office chairs, hydraulic hoses, cotton yarn,"
        " paper bags, door locks, solar inverters, medical trays, frozen berries, dairy powder, animal feed, road salt,"
        " fire doors, lifting gear, shelving, batteries, sensors, copper wire, wood pellets, dental resin, printing ink"
    ),
    "cause": _listed(
        "a long strike at the docks, a mild winter, a shortage of drivers, new customs forms, an outage of the grid,"
        " a late harvest, the failure of a supplier, a change of fashion, higher tolls, a fire in a neighbouring plant,"
        " a dry summer, delays at the border, the recall of a part, a slump in building, the loss of a carrier,"
        " weak currencies"
    ),
    "measure": _listed(
        "shared purchasing, better insulation, shorter shifts, a new planning system, fewer variants, quality circles,"
        " online ordering, heat recovery, joint transport, automatic testing, paperless billing, leaner stocks,"
        " remote maintenance, reusable crates, earlier inspections, flexible working hours"
    ),
    "grew": _listed("grew, rose, climbed, went up, increased, advanced"),
    "fell": _listed("fell, dropped, shrank, went down, decreased, slipped"),
    "somewhat": _listed("slightly, somewhat, clearly, markedly, a little, noticeably"),
    "number": _listed(
        "two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, fifteen, eighteen, twenty"
    ),
    "ordinal": _listed("second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth"),
    "percent": tuple(f"{tenths / 10:.1f} per cent" for tenths in range(3, 390)),
    "money": tuple(f"{hundredths / 100:.2f} million" for hundredths in range(1_207, 99_900, 11)),
    "count": tuple(f"{thousands},{rest:03}" for thousands in range(3, 98) for rest in range(7, 1_000, 11)),
}
"""Slot -> what may stand there. No figure reads as a year: counts have a comma, amounts two decimals."""

FORMS = _listed("Holdings, Industries, Trading, Mills, Works, Brands, Logistics, Foundries")
"""The second word of a company's name."""

STARTS = _listed(
    "bal bren cor dal dren fal fen gar gol hal hev jor kel kor lam lor mar mel nar nev or pal pel quin ral rov sel sor"
    " tal tor ul val vel vor wen yor zan zel",
    " ",
)
MIDDLES = _listed("a e i o u ai au ei ia ara are eno eni idi ido ome omu una une eli ela ova ovi isu ate", " ")
ENDS = _listed("bex dmor fant gric kvist lden mbra ndis phor quist rnok ssel ttan vrek wick xon zmar", " ")
"""Syllables of companies' names, which are invented."""

MARKS = (
    _listed(
        "Amber Azure Beige Black Blue Bronze Brown Cobalt Coral Crimson Ebony Emerald Golden Green Grey Indigo Ivory"
        " Jade Khaki Lilac Magenta Maroon Mauve Ochre Olive Orange Pearl Pink Purple Red Russet Saffron Scarlet Sepia"
        " Silver Slate Tan Teal Turquoise Umber Vermilion Violet White Yellow",
        " ",
    ),
    _listed(
        "Albatross Antelope Badger Barracuda Bat Bear Beaver Bee Beetle Bison Boar Buffalo Butterfly Camel Cat"
        " Cheetah Cobra Condor Cow Coyote Crab Cricket Crocodile Crow Deer Dingo Dog Dolphin Donkey Dove Dragonfly"
        " Duck Eagle Eel Elephant Elk Falcon Ferret Finch Flamingo Fox Frog Gazelle Gecko Giraffe Goat Goose Gorilla"
        " Grasshopper Hamster Hare Hawk Hedgehog Heron Hippo Hornet Horse Hyena Ibis Iguana Jackal Jaguar Jellyfish"
        " Kangaroo Kingfisher Koala Lemur Leopard Lion Lizard Llama Lobster Lynx Magpie Mammoth Mole Mongoose Monkey"
        " Moose Moth Mouse Mule Octopus Orca Ostrich Otter Owl Oyster Panda Panther Parrot Peacock Pelican Penguin"
        " Pigeon Piranha Pony Porcupine Puffin Puma Python Rabbit Raccoon Ram Raven Reindeer Rhino Robin Salmon"
        " Scorpion Seagull Seal Shark Sheep Skunk Sloth Snail Sparrow Spider Squid Squirrel Stork Swallow Swan Tiger"
        " Toad Tortoise Trout Turkey Turtle Viper Vulture Walrus Wasp Weasel Whale Wolf Wombat Woodpecker Zebra",
        " ",
    ),
    _listed(
        "Accordion Anchor Anvil Apron Arch Arrow Axe Balloon Banjo Barrel Basket Beacon Bell Blanket Bonnet Boot"
        " Bottle Bow Bracelet Brick Broom Brush Bucket Button Candle Cannon Canoe Canvas Cart Castle Cello Chapel"
        " Chariot Chimney Cloak Clock Compass Cottage Crown Cup Curtain Cushion Dagger Diamond Dice Doll Drum Easel"
        " Envelope Feather Fiddle Flag Flute Fork Fountain Gate Glove Goblet Guitar Hammer Hammock Harp Hat Helmet Horn"
        " Hut Igloo Jacket Jigsaw Kettle Key Kite Knife Ladder Lantern Lens Lighthouse Locket Lute Mandolin Map Marble"
        " Mask Medal Mirror Needle Oar Oboe Organ Paddle Palace Parachute Pencil Piano Pillow Pipe Plough Prism Puppet"
        " Pyramid Quill Racket Raft Ribbon Ring Rope Saddle Sail Scarf Sceptre Shield Shovel Sickle Slipper Spade Spoon"
        " Statue Stove Sword Tambourine Teapot Telescope Temple Tent Throne Torch Tower Trident Trumpet Umbrella Vase"
        " Violin Wagon Whistle Windmill Wreath",
        " ",
    ),
)
"""The three words of a mark."""
