(() => {
  const parse = color => {
    const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, under) => ({ r: mix(top.r, under.r, top.a), g: mix(top.g, under.g, top.a), b: mix(top.b, under.b, top.a), a: 1 });
  const mix = (x, y, a) => x * a + y * (1 - a);
  const behind = node => {
    const layers = [];
    for (; node; node = node.parentElement) layers.unshift(parse(getComputedStyle(node).backgroundColor));
    return layers.reduce((under, top) => over(top, under), { r: 255, g: 255, b: 255, a: 1 });
  };
  const light = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const low = new Set();
  const judge = (what, top, under, least) => {
    const r = ratio(over(top, under), under);
    if (r < least) low.add(`${what}: ${r.toFixed(2)} below ${least}`);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let text; text = texts.nextNode();) {
    const node = text.parentElement, style = getComputedStyle(node);
    if (!text.data.trim() || node.matches("script, style, template, .hidden") || !node.checkVisibility()) continue;
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    judge(`"${text.data.trim().slice(0, 30)}"`, parse(style.color), behind(node), large ? 3 : 4.5);
    seen++;
  }
  for (const input of document.querySelectorAll("input[placeholder]"))
    judge("placeholder", parse(getComputedStyle(input, "::placeholder").color), behind(input), 4.5);
  for (const bar of document.querySelectorAll("li:not(.past) > .meter > span"))
    judge(`bar ${bar.closest("li").className}`, parse(getComputedStyle(bar).backgroundColor), behind(bar.parentElement), 3);
  if (seen < 50) low.add(`only ${seen} texts were looked at`);
  return [...low].join("\n");
})()
