mod sys;
pub fn x() {}
