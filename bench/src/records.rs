//! Messages of JSON as services send them: identifiers, names, numbers, booleans, nested objects.
//! The same seed gives the same messages, and two are rarely equal.

use std::fmt::Write;

use crate::random::Random;

const FIRST_NAMES: [&str; 16] = [
    "Ada", "Bruno", "Chiara", "David", "Elif", "Farid", "Grace", "Hanna", "Ivan", "Jun", "Kofi",
    "Lucia", "Mehmet", "Noor", "Olga", "Pedro",
];
const LAST_NAMES: [&str; 16] = [
    "Abe", "Berger", "Costa", "Dubois", "Eriksen", "Fischer", "Garcia", "Hopper", "Ito", "Jansen",
    "Khan", "Lovelace", "Mbeki", "Novak", "Okafor", "Petrov",
];
const CITIES: [&str; 12] = [
    "Accra", "Bergen", "Cairo", "Delft", "Essen", "Graz", "Hanoi", "Izmir", "Kyoto", "Lisbon",
    "Montreal", "Nairobi",
];
const WORDS: [&str; 20] = [
    "account", "agreed", "before", "called", "delivery", "east", "invoice", "later", "moved",
    "north", "number", "offered", "paid", "parcel", "reply", "returned", "south", "wanted",
    "weekly", "west",
];

/// An endless source of messages.
#[derive(Debug)]
pub struct Records {
    random: Random,
    /// The identifier of the last record; identifiers ascend.
    id: u64,
}

impl Records {
    /// The source that `seed` determines.
    pub fn new(seed: u64) -> Records {
        Records { random: Random::new(seed), id: 1_000_000 }
    }

    /// A message of `bytes` ASCII characters: 16, or 512 and more.
    pub fn message(&mut self, bytes: usize) -> String {
        let message = if bytes == 16 { self.reading() } else { self.page(bytes) };
        assert_eq!(message.len(), bytes);
        message
    }

    /// A message of 16 bytes.
    fn reading(&mut self) -> String {
        match self.random.below(4) {
            0 => format!("{{\"id\":{}}}", self.random.between(100_000_000, 999_999_999)),
            1 => format!("[{},true]", self.random.between(100_000_000, 999_999_999)),
            2 => format!("[{},false]", self.random.between(10_000_000, 99_999_999)),
            _ => {
                let [x, y] = [self.random.between(10, 99), self.random.between(100, 999)];
                format!("{{\"x\":{x},\"y\":{y}}}")
            }
        }
    }

    /// As many records as there is room for, and a note that fills it.
    fn page(&mut self, bytes: usize) -> String {
        const NOTE: &str = "],\"note\":\"";
        const END: &str = "\"}";
        let mut page = format!("{{\"page\":{},\"records\":[", self.random.below(1000));
        loop {
            let record = self.record();
            if page.len() + ",".len() + record.len() + NOTE.len() + END.len() > bytes {
                break;
            }
            if !page.ends_with('[') {
                page.push(',');
            }
            page.push_str(&record);
        }
        page.push_str(NOTE);
        while page.len() + END.len() < bytes {
            page.push_str(self.random.choose(&WORDS));
            page.push(' ');
        }
        page.truncate(bytes - END.len());
        page.push_str(END);
        page
    }

    fn record(&mut self) -> String {
        let random = &mut self.random;
        self.id += random.between(1, 50);
        let [first, last] = [random.choose(&FIRST_NAMES), random.choose(&LAST_NAMES)];
        let mut record = format!("{{\"id\":{},\"name\":\"{first} {last}\"", self.id);
        let [mail_first, mail_last] = [first.to_lowercase(), last.to_lowercase()];
        let number = random.below(100);
        let mut field = |text: std::fmt::Arguments<'_>| {
            record.write_fmt(text).expect("a string takes all");
        };
        field(format_args!(",\"mail\":\"{mail_first}.{mail_last}{number}@example.org\""));
        field(format_args!(",\"age\":{}", random.between(18, 90)));
        field(format_args!(",\"active\":{}", random.below(4) != 0));
        field(format_args!(",\"balance\":{}.{:02}", random.below(5000), random.below(100)));
        let [one, other] = [random.choose(&WORDS), random.choose(&WORDS)];
        field(format_args!(",\"tags\":[\"{one}\",\"{other}\"]"));
        let [city, code] = [random.choose(&CITIES), &random.between(10_000, 99_999).to_string()];
        field(format_args!(",\"address\":{{\"city\":\"{city}\",\"code\":\"{code}\""));
        let [latitude, longitude] = [random.between(10_000, 69_999), random.between(100, 89_999)];
        field(format_args!(",\"position\":[{}.{:03}", latitude / 1000, latitude % 1000));
        field(format_args!(",{}.{:03}]}}}}", longitude / 1000, longitude % 1000));
        record
    }
}
