//! temporary
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}
pub struct LayerWeights {
    pub name: String,
    pub weights: Vec<f32>,
}
pub fn curves(_t: &str, _x: &str, _y: &str, _c: &[Curve]) -> String {
    String::new()
}
pub fn merge_weights(_t: &str, _y: &str, _l: &[LayerWeights]) -> String {
    String::new()
}
pub fn mean_and_spread(v: &[f64]) -> String {
    format!("{:?}", v)
}
pub struct Table {
    pub headers: Vec<String>,
    pub rows: Vec<Vec<String>>,
}
impl Table {
    pub fn new(headers: Vec<String>, rows: Vec<Vec<String>>) -> Table {
        Table { headers, rows }
    }
    pub fn to_text(&self) -> String {
        self.rows.iter().map(|r| r.join("  ")).collect::<Vec<_>>().join("\n")
    }
    pub fn to_markdown(&self) -> String {
        self.to_text()
    }
}
