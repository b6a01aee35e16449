//! Invariant: no bytes make the conditions of a rule panic, take more than their steps, or capture beyond the bytes;
//! and that something is missing behind the end makes no match of what needs the end.

use std::sync::OnceLock;

use protocols::Settings;
use signatures::{Context, Environment, Files, Inspection, Outcome, Regexes, RuleSet, Source, Subject};

/// Conditions of every kind, many of them made to be costly.
const OPTIONS: [&str; 20] = [
    r#"content:"a"; content:"a"; distance:0; content:"a"; distance:0; content:"b"; distance:0;"#,
    r#"content:"a"; content:"a"; within:5; content:"a"; within:5; content:!"c"; within:3; isdataat:!1,relative;"#,
    r#"pcre:"/(a+)+$/"; pcre:"/^(a|aa)+$/R";"#,
    r#"pcre:"/(?P<flow_x>[0-9]+).{0,8}\1/i"; content:"|00|"; distance:0;"#,
    r#"content:"|00|"; byte_test:4,>,1000,0,relative,big; byte_jump:2,0,relative,align,multiplier 2,post_offset -3;"#,
    r#"byte_extract:4,0,n,little; content:"x"; offset:n; depth:n; byte_test:1,<,n,0;"#,
    r#"byte_extract:1,0,n,relative; byte_jump:1,n,relative,from_beginning; content:"y"; within:n;"#,
    r#"byte_math:bytes 2,offset 0,oper *,rvalue 65535,result r,endian big; byte_jump:1,r; isdataat:r;"#,
    r#"byte_math:bytes 4,offset 1,oper <<,rvalue 31,result r; content:"z"; offset:r;"#,
    r#"content:"n="; byte_test:10,=,7,0,relative,string,dec; content:"ab"; nocase; distance:-4; within:9;"#,
    r#"content:"n="; byte_jump:8,0,relative,string,hex; content:"ab"; distance:0;"#,
    r#"base64_decode:bytes 64,offset 1,relative; base64_data; content:"evil"; pcre:"/e.*l/R";"#,
    r#"content:"a"; base64_decode:relative; base64_data; content:"|ff|"; endswith;"#,
    r#"content:"abc"; startswith; content:"xyz"; endswith; content:"m"; offset:1; depth:60;"#,
    r#"content:"a"; isdataat:60000,relative; content:"b"; distance:65000; within:500;"#,
    r#"content:!"a"; content:!"b"; offset:3; depth:9; content:!"c"; nocase;"#,
    r#"dsize:>3; content:"aa"; fast_pattern; content:"ab"; distance:1; within:2; pcre:"/^b{2,}?/R";"#,
    r#"byte_test:3,&,0x7f00ff,-5,relative; content:"a"; byte_test:2,^,0x1234,-70,relative;"#,
    r#"content:"a"; entropy:value >= 0.5, bytes 32, offset 1;"#,
    r#"pcre:"/^(?:[a-z]+[0-9]*)*[^a]{3,300}(?=x)/smi"; content:"x";"#,
];

struct NoFiles;

impl Files for NoFiles {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        Err(name.to_owned())
    }
}

fn rules() -> &'static RuleSet {
    static RULES: OnceLock<RuleSet> = OnceLock::new();
    RULES.get_or_init(|| {
        let rule =
            |(sid, options): (usize, &&str)| format!("alert tcp any any -> any any ({options} sid:{};)\n", sid + 1);
        let text: String = OPTIONS.iter().enumerate().map(rule).collect();
        let settings = Settings::default();
        let environment =
            Environment { settings: &settings, classification: "", reference: "", thresholds: "", files: &NoFiles };
        let rules = RuleSet::load(&[Source { name: "fixed", text: text.as_bytes() }], &environment);
        let refused = rules.report.iter().filter(|entry| matches!(entry.outcome, Outcome::Refused(_)));
        // one may be refused (a keyword that is younger than the reference), not more: the target would test nothing
        assert!(refused.count() <= 1, "{:?}", rules.report);
        rules
    })
}

/// The first bytes choose rule and place, the rest is looked at.
pub fn run(input: &[u8]) {
    let [choice, start, data @ ..] = input else { return };
    let rules = &rules().signatures;
    let Some(rule) = rules.get(usize::from(*choice & 0x7f) % rules.len()) else { return };
    let start = u64::from(start >> 1) << ((start & 1) * 40);
    let is_complete = choice & 0x80 == 0;
    if let Some(inspection) = &rule.payload {
        look(inspection, Subject { data, start, is_complete });
        assert_eq!(
            look(inspection, Subject { data, start, is_complete }),
            look(inspection, Subject { data, start, is_complete })
        );
    }
}

fn look(inspection: &Inspection, subject: Subject<'_>) -> bool {
    let (mut steps, mut captures, mut variables) = (Context::STEPS, Vec::new(), Vec::new());
    let mut context = Context {
        variables: &mut variables,
        steps: &mut steps,
        regexes: &mut Regexes::default(),
        captures: &mut captures,
        is_dce_little: false,
    };
    let is_match = inspection.matches(subject, &mut context);
    assert!(steps <= Context::STEPS);
    assert!(is_match || captures.is_empty());
    assert!(captures.iter().all(|capture| capture.value.len() <= subject.data.len()));
    is_match
}
