// The texts in sight whose contrast is below WCAG's level AA: the body of a function.
const probe = document.createElement("p");
document.body.append(probe);
const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (color) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
};
probe.style.background = "Canvas";
const canvas = getComputedStyle(probe).backgroundColor;
probe.remove();
const luminance = (color) => {
    const [r, g, b] = rgba(color).slice(0, 3).map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
        const color = getComputedStyle(at).backgroundColor;
        if (rgba(color)[3] === 255) return color;
    }
    return canvas;
};
const faint = new Set();
let looked = 0;
for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((it) => it.nodeType === 3 && it.data.trim());
    if (!own || !element.checkVisibility() || element.tagName === "SCRIPT") continue;
    const [one, other] = [getComputedStyle(element).color, back(element)];
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    looked += 1;
    if ((light + 0.05) / (dark + 0.05) < 4.5) faint.add(`${element.textContent}: ${one} on ${other}`);
}
return { looked, faint: [...faint], canvas: luminance(canvas) };
