//! A map of countries as tiles: each country one box, near where it lies. Pure.
//!
//! The upper strip of a box is what holds now, the body what would hold; a country that is divided is divided in
//! proportion. Positions and colours are classes and attributes, because the content security policy allows no styles in
//! the page.

use samovar_wire::route::{CountryTally, OriginTally};

/// Where each country lies. What is not here is put in a row of its own below.
const WORLD: &str = "\
.. CA .. .. .. .. GL .. .. IS .. .. NO SE FI .. .. .. RU .. .. .. .. .. .. .. ..
.. US .. .. .. .. .. .. IE GB .. NL DK PL EE LV LT BY .. .. KZ .. MN .. .. .. ..
.. MX .. .. .. .. .. .. .. FR BE LU DE CZ SK UA MD GE AM UZ KG TJ CN KP .. JP ..
.. GT BZ CU BS .. .. .. PT ES AD CH LI AT HU RO BG TR AZ TM AF .. .. KR TW .. ..
.. SV HN JM HT DO PR .. .. .. MC IT SM SI HR RS MK SY IQ IR PK IN NP BT HK MO ..
.. NI CR PA .. AG DM .. .. MA .. MT VA ME BA AL GR CY LB JO KW .. BD MM LA VN PH
.. EC CO VE TT BB LC .. EH DZ TN LY EG IL PS SA BH QA .. .. LK MV TH KH .. .. GU
.. PE BO BR GY SR GF .. MR ML NE TD SD ER DJ YE OM AE .. .. .. MY SG BN .. .. PW
.. CL PY UY .. .. .. CV SN BF NG CM CF SS ET SO .. .. .. .. .. ID TL PG .. SB ..
.. AR .. .. .. .. .. GM GW GN CI GH GA CG UG KE SC .. .. .. .. .. AU .. VU FJ ..
.. .. .. .. .. .. .. .. SL LR TG BJ GQ ST CD RW TZ KM .. .. .. .. .. .. .. .. NZ
.. .. .. .. .. .. .. .. .. .. .. .. .. AO ZM MW BI MG MU .. .. .. .. .. .. .. ..
.. .. .. .. .. .. .. .. .. .. .. .. .. NA BW ZW MZ .. .. .. .. .. .. .. .. .. ..
.. .. .. .. .. .. .. .. .. .. .. .. .. ZA LS SZ .. .. .. .. .. .. .. .. .. .. ..";

const COLUMNS: usize = 27;
const WIDTH: usize = 44;
const HEIGHT: usize = 36;
const GAP: usize = 3;
const STRIP: usize = 9;

/// Colours there are; further origins share the last.
const COLOURS: usize = 8;

/// One box.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) code: String,
    /// Stores there; empty for a country without any.
    pub(super) stores: String,
    /// Tills that change.
    pub(super) changed: u64,
    /// The whole story, for a pointer held over it and for readers of screens.
    pub(super) title: String,
    pub(super) before: Vec<Part>,
    pub(super) after: Vec<Part>,
}

/// A coloured part of a box.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) x: usize,
    pub(super) width: usize,
    pub(super) class: String,
}

/// The map with the size of its drawing.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) tiles: Vec<Tile>,
    /// Countries of the world without stores, for orientation.
    pub(super) others: Vec<(usize, usize, &'static str)>,
}

/// Draws the countries. `origins` are all origins in the order of their colours, `told` tells of one country.
pub(super) fn map(
    countries: &[CountryTally],
    origins: &[String],
    told: impl Fn(&CountryTally) -> String,
) -> Map {
    let place = |column: usize, row: usize| (column * (WIDTH + GAP), row * (HEIGHT + GAP));
    let mut tiles = Vec::with_capacity(countries.len());
    let mut others = Vec::new();
    let mut rows = 0;
    for (row, line) in WORLD.lines().enumerate() {
        rows = row + 1;
        for (column, code) in line.split(' ').enumerate().filter(|(_, code)| *code != "..") {
            let (x, y) = place(column, row);
            match countries.iter().find(|one| one.country.as_str() == code) {
                Some(country) => tiles.push(tile(country, (x, y), origins, told(country))),
                None => others.push((x, y, code)),
            }
        }
    }
    let elsewhere = countries.iter().filter(|one| !WORLD.contains(one.country.as_str()));
    for (number, country) in elsewhere.enumerate() {
        let row = WORLD.lines().count() + number / COLUMNS;
        rows = row + 1;
        tiles.push(tile(country, place(number % COLUMNS, row), origins, told(country)));
    }
    Map { width: COLUMNS * (WIDTH + GAP), height: rows * (HEIGHT + GAP), tiles, others }
}

fn tile(country: &CountryTally, (x, y): (usize, usize), origins: &[String], title: String) -> Tile {
    Tile {
        x,
        y,
        code: country.country.to_string(),
        stores: short(country.stores),
        changed: country.changed,
        title,
        before: parts(&country.origins, origins, |tally| tally.devices_before),
        after: parts(&country.origins, origins, |tally| tally.devices_after),
    }
}

/// Parts of a box in proportion; what is there at all is at least two units wide.
fn parts(tallies: &[OriginTally], origins: &[String], count: impl Fn(&OriginTally) -> u64) -> Vec<Part> {
    let total: u64 = tallies.iter().map(&count).sum();
    let mut made: Vec<Part> = Vec::new();
    let mut done = 0;
    let present: Vec<_> = tallies.iter().filter(|tally| count(tally) > 0).collect();
    for (number, tally) in present.iter().enumerate() {
        done += count(tally);
        let x = made.last().map_or(0, |part| part.x + part.width);
        let left = present.len() - number - 1;
        let end = usize::try_from(done * WIDTH as u64 / total.max(1)).unwrap_or(WIDTH);
        let end = if left == 0 { WIDTH } else { end.max(x + 2).min(WIDTH.saturating_sub(left * 2)) };
        made.push(Part { x, width: end.saturating_sub(x), class: colour(tally.origin.as_ref(), origins) });
    }
    made
}

/// The class that colours an origin.
pub(super) fn colour(origin: Option<&samovar_wire::OriginId>, origins: &[String]) -> String {
    let Some(origin) = origin else { return "held".to_owned() };
    let number = origins.iter().position(|name| name == origin.as_str()).unwrap_or(COLOURS);
    format!("o{}", number.min(COLOURS - 1))
}

/// A number that fits a box.
fn short(number: u64) -> String {
    match number {
        0..=9_999 => number.to_string(),
        10_000..=999_999 => format!("{}k", number / 1000),
        _ => format!("{}M", number / 1_000_000),
    }
}

/// The height of a box, and of its upper strip.
pub(super) const BOX: (usize, usize, usize) = (WIDTH, HEIGHT, STRIP);

#[cfg(test)]
mod tests {
    use super::*;

    fn country(code: &str, before: &[(&str, u64)], after: &[(&str, u64)]) -> CountryTally {
        let names: std::collections::BTreeSet<&str> =
            before.iter().chain(after).map(|(name, _)| *name).collect();
        let of = |list: &[(&str, u64)], name: &str| {
            list.iter().find(|(found, _)| *found == name).map_or(0, |(_, number)| *number)
        };
        let origins = names
            .into_iter()
            .map(|name| OriginTally {
                origin: (!name.is_empty()).then(|| name.parse().unwrap()),
                devices_before: of(before, name),
                devices_after: of(after, name),
                ..OriginTally::default()
            })
            .collect();
        CountryTally { country: code.parse().unwrap(), stores: 5, devices: 5, changed: 1, origins }
    }

    #[test]
    fn every_line_of_the_world_has_all_columns_and_no_country_twice() {
        let mut codes: Vec<&str> = Vec::new();
        for line in WORLD.lines() {
            assert_eq!(line.split(' ').count(), COLUMNS, "{line}");
            codes.extend(line.split(' ').filter(|code| *code != ".."));
        }
        let all = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all);
    }

    #[test]
    fn a_divided_country_is_divided_in_proportion_and_fills_its_box() {
        let origins = ["apac".to_owned(), "usw".to_owned()];
        let jp = country("JP", &[("apac", 100)], &[("apac", 74), ("usw", 25), ("", 1)]);
        let drawn = map(&[jp], &origins, |one| one.country.to_string());
        let tile = &drawn.tiles[0];
        assert_eq!(tile.before, [Part { x: 0, width: WIDTH, class: "o0".into() }]);
        let classes: Vec<_> = tile.after.iter().map(|part| part.class.as_str()).collect();
        assert_eq!(classes.iter().filter(|class| **class == "held").count(), 1);
        assert_eq!(tile.after.iter().map(|part| part.width).sum::<usize>(), WIDTH);
        assert!(tile.after.iter().all(|part| part.width >= 2));
    }

    #[test]
    fn a_country_that_is_not_on_the_map_gets_a_row_below() {
        let drawn = map(&[country("XK", &[("a", 1)], &[("a", 1)])], &["a".to_owned()], |_| String::new());
        assert_eq!(drawn.tiles[0].y, WORLD.lines().count() * (HEIGHT + GAP));
        assert!(drawn.height > drawn.tiles[0].y);
    }
}
