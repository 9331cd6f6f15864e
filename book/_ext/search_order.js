// Results of the search: chapters first, the API reference and the index after them.
var Scorer = {
  score: ([page, , anchor, , score]) =>
    score + (["api", "genindex"].includes(page) ? -40 : anchor ? 0 : 5),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
