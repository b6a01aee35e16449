//! Transforms of a buffer before it is looked at: `dotprefix`, `to_md5`, `url_decode`, `xor` …

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transform {}

impl Transform {
    /// Return the transform of that name, `None` if there is none; or what is wrong with its argument.
    pub fn parse(_name: &str, _argument: Option<&str>) -> Option<Result<Transform, String>> {
        None
    }

    /// Put what becomes of `input` into `output` (cleared first).
    pub fn apply(&self, _input: &[u8], _output: &mut Vec<u8>) {
        match *self {}
    }
}
